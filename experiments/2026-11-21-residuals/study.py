"""What the ways to connect layers do to training, and what they read.

Command:   reslab sweep experiments/2026-11-21-residuals/study.py --jobs 2
Hardware:  2 CPU cores; with `study.py:tpu` one TPU v5e-8 host, not run yet
"""

from reslab.core.errors import ReslabError
from reslab.study.algebra import case, chain
from reslab.study.plan import Study

SCALES = {
    "cpu": {
        "model.features": 64,
        "model.depth": 6,
        "data.length": 64,
        "data.batch": 16,
        "optim.learning_rate": 3e-3,
        "train.steps": 300,
        "train.eval_every": 50,
        "eval.batches": 4,
        "precision.compute": "float32",
        "probes.every": 150,
    },
    "tpu": {
        "model.features": 768,
        "model.depth": 24,
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
}
RESIDUALS = {
    "plain": "plain",
    "attnres": "attnres",
    "attnres_block": "attnres(block=4)",
    "delta": "attnres(routing='add')",
    "delta_block": "attnres(routing='add', block=4)",
    "hyper": "hyper(streams=4)",
    "hyper_dynamic": "hyper(streams=4, is_dynamic=True)",
    "mhc": "mhc(streams=4)",
    "denseformer": "denseformer",
    "ddl": "ddl",
}
# These read one stream as it is: there are no weights to be looked at.
WITHOUT_WEIGHTS = ("plain", "ddl")
LOOKS = ("stream", "contribution", "gradient")
VALUE_PATH = ", value_path='value_residual'"


def _fields(name: str) -> dict[str, object]:
    fields: dict[str, object] = {"model.residual": RESIDUALS[name]}
    if name not in WITHOUT_WEIGHTS:
        fields["probes.names"] = (*LOOKS, "depth_weights")
    return fields


def get_study(scale: str = "cpu") -> Study:
    """Three seeds of each, at the size of a laptop or of a TPU host."""
    if scale not in SCALES:
        raise ReslabError(f"scale {scale!r}", expected=" or ".join(SCALES))
    heads = 2 if scale == "cpu" else 12
    own, first = (f"attention(heads={heads}{path})" for path in ("", VALUE_PATH))
    return Study(
        question=(
            "Do attention residuals, hyper-connections, dense and delta shortcuts and "
            "value residuals train better than the plain residual, at equal tokens and "
            "at equal time, and do Delta's readings concentrate where attention "
            "residuals' do not?"
        ),
        config="tiny",
        cases=chain(
            *(case(name, _fields(name)) for name in RESIDUALS),
            case("value_residual", {"model.mixer": first}),
        ),
        seeds=(0, 1, 2),
        extra_baseline_seeds=0,
        baseline="plain",
        overrides={
            # As in the runs that README.md reports.
            "model.post_embedding_norm": "none",
            "data.predicts_end": False,
            # Every branch starts at full size, as in the papers.
            "model.mixer": own,
            "probes.names": LOOKS,
            "model.scales_output_by_depth": False,
            "train.keep_checkpoints": 1,
            **SCALES[scale],
        },
    )
