"""Every norm under pre-norm, and every placement of one norm.

Command:   reslab sweep experiments/2026-11-21-norms/study.py --jobs 2
Hardware:  2 CPU cores; `study.py:one_seed` has every norm and placement, once
"""

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.study.algebra import Sweep, case, chain, vary
from reslab.study.plan import Study

# Those that change their statistics over steps do so within a run's 300.
SPECS = {
    "power": "power(warmup=50)",
    "unified": "unified(warmup=50)",
    "progressive_rep_batch": "progressive_rep_batch(transition=200)",
    "fake_layer": "fake_layer(deviation=1.0)",
}
# Without what belongs to another experiment: chains, and removal in fine-tuning.
LEFT_OUT = {"chain_rms", "removable_layer", "layer_norm_removal"}
MAIN = ("rms", "layer", "crms", "seednorm", "dyt", "derf", "single_scale", "batch")


def _cases(is_whole: bool) -> Sweep:
    norms = [
        name
        for name in registry.names("norms")
        if name not in LEFT_OUT
        and not getattr(registry.module("norms", name).build, "is_activation", False)
        and (is_whole or name in MAIN)
    ]
    placements = [
        name
        for name in registry.names("placements")
        if name not in LEFT_OUT | {"pre"}
        and (is_whole or name in ("post", "peri", "ln_scaling", "mix_ln"))
    ]
    return chain(
        *(
            case(f"norm={name}", {"model.norm": SPECS.get(name, name)})
            for name in norms
        ),
        vary("model.placement", *placements),
    )


def get_study(scale: str = "three_seeds") -> Study:
    """The main norms and placements three times, or all of them once."""
    scales = {"three_seeds": (0, 1, 2), "one_seed": (0,)}
    if scale not in scales:
        raise ReslabError(f"scale {scale!r}", expected=" or ".join(scales))
    return Study(
        question=(
            "Which norms and placements train a small decoder best at equal tokens, "
            "and what do they do to the residual stream and the gradients by depth?"
        ),
        config="tiny",
        cases=_cases(scale == "one_seed"),
        seeds=scales[scale],
        baseline={"model.norm": "rms", "model.placement": "pre"},
        overrides={
            "model.features": 64,
            "model.depth": 6,
            "model.mixer": "attention(heads=2)",
            "model.scales_output_by_depth": False,
            "data.length": 64,
            "data.batch": 16,
            "train.steps": 300,
            "train.eval_every": 50,
            "train.keep_checkpoints": 1,
            "eval.batches": 4,
            "precision.compute": "float32",
            "probes.every": 100,
        },
    )
