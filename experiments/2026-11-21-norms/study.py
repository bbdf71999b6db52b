"""Every norm under pre-norm, and every placement of one norm.

Command:   reslab sweep experiments/2026-11-21-norms/study.py --jobs 2
Hardware:  2 CPU cores; with `study.py:tpu` one TPU v5e-8 host, not run yet
"""

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.study.algebra import Sweep, case, chain, vary
from reslab.study.plan import Study

# Those that change their statistics over steps do so within a run's 300.
SPECS = {
    "power": "power(warmup=50)",
    "unified": "unified(warmup=50)",
    # What passes a norm beside it is multiplied by itself in a SwiGLU: with the skip
    # that these two begin with elsewhere, the first step overflows.
    "rep_batch": "rep_batch(initial_skip=0.0)",
    "progressive_rep_batch": "progressive_rep_batch(transition=200, initial_skip=0.0)",
    "fake_layer": "fake_layer(deviation=1.0)",
}
# Without what belongs to another experiment: chains, and removal in fine-tuning.
LEFT_OUT = {"chain_rms", "removable_layer", "layer_norm_removal"}
# These have all seeds; the others one, to be seen beside them.
MAIN = (
    *("rms", "layer", "crms", "seednorm", "dyt", "derf", "single_scale", "batch"),
    *("post", "sandwich", "peri", "mix_ln", "ln_scaling", "deepnorm"),
)

SCALES = {
    "cpu": {
        "model.features": 64,
        "model.depth": 6,
        "model.mixer": "attention(heads=2)",
        "data.length": 64,
        "data.batch": 16,
        "optim.learning_rate": 3e-3,
        "train.steps": 300,
        "train.eval_every": 50,
        "eval.batches": 4,
        "precision.compute": "float32",
        "probes.every": 100,
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
        "train.steps": 5000,
        "train.eval_every": 250,
        "train.checkpoint_every": 500,
        "mesh.data": 1,
        "mesh.fsdp": -1,
    },
}


def _cases() -> Sweep:
    norms = [
        name
        for name in registry.names("norms")
        if name not in LEFT_OUT
        and not getattr(registry.module("norms", name).build, "is_activation", False)
    ]
    placements = [
        name for name in registry.names("placements") if name not in LEFT_OUT | {"pre"}
    ]
    return chain(
        *(
            case(f"norm={name}", {"model.norm": SPECS.get(name, name)})
            for name in norms
        ),
        vary("model.placement", *placements),
    )


def get_study(scale: str = "cpu") -> Study:
    """Three seeds of the main ones, at the size of a laptop or of a TPU host."""
    if scale not in SCALES:
        raise ReslabError(f"scale {scale!r}", expected=" or ".join(SCALES))
    cases = _cases()
    return Study(
        question=(
            "Which norms and placements train a small decoder best at equal tokens, "
            "and what do they do to the residual stream and the gradients by depth?"
        ),
        config="tiny",
        cases=cases,
        seeds=(0, 1, 2),
        extra_baseline_seeds=0,
        once=[one.name for one in cases if one.name.split("=")[-1] not in MAIN],
        baseline={"model.norm": "rms", "model.placement": "pre"},
        overrides={
            # As in the runs that README.md reports.
            "model.post_embedding_norm": "none",
            "data.predicts_end": False,
            # Every branch starts at full size, as in the papers.
            "model.scales_output_by_depth": False,
            "train.keep_checkpoints": 1,
            **SCALES[scale],
        },
    )
