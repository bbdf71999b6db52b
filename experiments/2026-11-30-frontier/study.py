"""Depth streams of published designs against plain pre-norm, all else equal.

Command:   reslab sweep experiments/2026-11-30-frontier/study.py --pack seeds
Hardware:  2 CPU cores; with `study.py:tpu` one TPU v5e-8 host, not run yet
"""

from typing import Literal

from reslab.study.algebra import case, chain
from reslab.study.plan import Study

SCALES = {
    "cpu": {
        "model.features": 64,
        "model.depth": 8,
        "model.mixer": "attention(heads=2,qk_norm='rms')",
        "data.length": 64,
        "data.batch": 16,
        "optim.learning_rate": 3e-3,
        "train.steps": 300,
        "train.eval_every": 50,
        "train.checkpoint_every": 300,
        "eval.batches": 4,
        "precision.compute": "float32",
        "probes.every": 150,
    },
    "tpu": {
        "model.features": 768,
        "model.depth": 24,
        "model.mixer": "attention(heads=12,qk_norm='rms')",
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
# By the model that has it; everything else is that of the baseline.
STREAMS = {
    "plain": {},
    "kimi_k3": {"model.residual": "attnres(block_layers=2,epsilon=1e-05)"},
    "deepseek_v4": {"model.residual": "mhc(weight_epsilon=1e-06,collapse='weighted')"},
    "glm5": {
        "model.residual": "mhc(weight_epsilon=1e-06,epsilon=1e-05,collapse='mean')"
    },
    "gemma": {"model.placement": "sandwich"},
    "olmo2": {"model.placement": "res_post"},
}
PROBES = ("stream", "contribution", "gradient")


def _fields(name: str) -> dict[str, object]:
    fields: dict[str, object] = {"model.residual": "plain", "model.placement": "pre"}
    fields |= STREAMS[name]
    if fields["model.residual"] != "plain":
        fields["probes.names"] = (*PROBES, "depth_weights")
    return fields


def get_study(scale: Literal["cpu", "tpu"] = "cpu") -> Study:
    """Six cases, five seeds of each, at the size of a laptop or of a TPU host."""
    return Study(
        question=(
            "At one size, and at equal tokens and at equal time, what do the depth "
            "streams of Kimi K3, DeepSeek-V4, GLM-5, Gemma and OLMo 2 buy over plain "
            "pre-norm, and what do they cost?"
        ),
        config="tiny",
        cases=chain(*(case(name, _fields(name)) for name in STREAMS)),
        seeds=(0, 1, 2, 3, 4),
        baseline="plain",
        overrides={
            "probes.names": PROBES,
            "train.keep_checkpoints": 1,
            **SCALES[scale],
        },
    )
