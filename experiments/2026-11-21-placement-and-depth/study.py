"""Pre-norm against post-norm at three depths, and hyper-connections against plain.

Command:   reslab sweep experiments/2026-11-21-placement-and-depth/study.py --jobs 2
Hardware:  2 CPU cores; with `study.py:tpu` one TPU v5e-8 host, not run yet
"""

from reslab.core.errors import ReslabError
from reslab.study.algebra import chain, product, vary, zipped
from reslab.study.plan import Study

SCALES = {
    "cpu": {
        "depths": (4, 8, 16),
        "overrides": {
            "model.features": 64,
            "model.mixer": "attention(heads=2)",
            "data.length": 64,
            "data.batch": 16,
            "optim.learning_rate": 3e-3,
            "train.steps": 500,
            "train.log_every": 10,
            "train.eval_every": 25,
            "train.checkpoint_every": 100,
            "train.keep_checkpoints": 1,
            "eval.batches": 4,
            "precision.compute": "float32",
            "probes.every": 50,
        },
    },
    "tpu": {
        "depths": (12, 24, 48),
        "overrides": {
            "model.features": 768,
            "model.mixer": "attention(heads=12)",
            "model.remat": "dots",
            "data.length": 1024,
            "data.batch": 256,
            "optim.learning_rate": 1e-3,
            "optim.schedule": "cosine(warmup=200)",
            "train.steps": 5000,
            "train.eval_every": 250,
            "train.checkpoint_every": 500,
            "mesh.data": 1,
            "mesh.fsdp": -1,
        },
    },
}


def get_study(scale: str = "cpu") -> Study:
    """The study at the size of a laptop, or of a TPU host."""
    if scale not in SCALES:
        raise ReslabError(f"scale {scale!r}", expected=" or ".join(SCALES))
    depths = SCALES[scale]["depths"]
    placements = product(
        vary("model.depth", *depths), vary("model.placement", "pre", "post")
    )
    hyper = zipped(
        vary("model.depth", depths[1]),
        vary("model.residual", hyper="hyper(streams=4)"),
    )
    return Study(
        question=(
            "How do pre-norm and post-norm fare as the network gets deeper, what "
            "happens to gradients and to the residual stream inside, and do "
            "hyper-connections improve on the plain residual?"
        ),
        config="tiny",
        cases=chain(placements, hyper),
        seeds=(0, 1, 2),
        extra_baseline_seeds=0,
        baseline={"model.placement": "pre", "model.residual": "plain"},
        # Every branch starts at full size, as in the papers.
        overrides={
            # As in the runs that README.md reports.
            "model.post_embedding_norm": "none",
            "data.predicts_end": False,
            "model.scales_output_by_depth": False,
            **SCALES[scale]["overrides"],
        },
    )
