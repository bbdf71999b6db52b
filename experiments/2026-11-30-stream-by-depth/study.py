"""The stream and its gradients by depth: pre-norm, post-norm, hyper-connections.

Command:   reslab sweep experiments/2026-11-30-stream-by-depth/study.py
Hardware:  2 CPU cores; with `study.py:tpu` one TPU v5e-8 host, not run yet
"""

from reslab.core.errors import ReslabError
from reslab.study.algebra import chain, vary
from reslab.study.plan import Study

SCALES = {
    "cpu": {
        "model.features": 64,
        "model.depth": 12,
        "model.mixer": "attention(heads=2)",
        "data.length": 64,
        "data.batch": 8,
        "optim.learning_rate": 3e-3,
        "train.steps": 200,
        "train.log_every": 10,
        "train.eval_every": 25,
        "train.checkpoint_every": 200,
        "train.keep_checkpoints": 1,
        "eval.batches": 2,
        "precision.compute": "float32",
        "probes.every": 20,
    },
    "tpu": {
        "model.features": 768,
        "model.depth": 24,
        "model.mixer": "attention(heads=12)",
        "model.remat": "dots",
        "data.length": 1024,
        "data.batch": 256,
        "optim.learning_rate": 1e-3,
        "optim.schedule": "cosine(warmup=200)",
        "train.steps": 2000,
        "train.eval_every": 250,
        "train.checkpoint_every": 500,
        "probes.every": 200,
        "mesh.data": 1,
        "mesh.fsdp": -1,
    },
}


def get_study(scale: str = "cpu") -> Study:
    """Three cases: a few minutes on a laptop, or at the size of a TPU host."""
    if scale not in SCALES:
        raise ReslabError(f"scale {scale!r}", expected=" or ".join(SCALES))
    return Study(
        question=(
            "How do the residual stream and its gradients grow along depth in "
            "pre-norm, post-norm and hyper-connections?"
        ),
        config="tiny",
        cases=chain(
            vary("model.placement", "pre", "post"),
            vary("model.residual", hyper="hyper(streams=4)"),
        ),
        seeds=(0, 1, 2),
        extra_baseline_seeds=0,
        baseline={"model.placement": "pre", "model.residual": "plain"},
        # Every branch starts at full size, as in the papers.
        overrides={
            # As in the runs that README.md reports.
            "model.post_embedding_norm": "none",
            "data.predicts_end": False,
            "model.scales_output_by_depth": False,
            **SCALES[scale],
        },
    )
