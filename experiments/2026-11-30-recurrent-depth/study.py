"""Layers that are used again, against layers that are stored, on text and on hops.

Command:   reslab sweep experiments/2026-11-30-recurrent-depth/study.py --pack seeds
           reslab sweep experiments/2026-11-30-recurrent-depth/study.py:hops \
               --pack seeds
           python experiments/2026-11-30-recurrent-depth/after.py \
               runs/2026-11-30-recurrent-depth
Hardware:  2 CPU cores; with `study.py:tpu` one TPU v5e-8 host, not run yet
"""

from collections.abc import Iterable
from typing import Any

from reslab.core.errors import ReslabError
from reslab.study.algebra import case, chain
from reslab.study.plan import Study

SCALES = {
    "cpu": {
        "model.features": 64,
        "data.length": 128,
        "data.batch": 8,
        "optim.learning_rate": 6e-3,
        "train.steps": 200,
        "train.eval_every": 200,
        "train.checkpoint_every": 200,
        "eval.batches": 8,
        "precision.compute": "float32",
        "probes.every": 200,
    },
    "tpu": {
        "model.features": 768,
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
        "probes.every": 500,
    },
}
# Layers that are stored, and layers that are applied to a token, unless said otherwise.
STORED, APPLIED = 4, 8
EXPERTS = "experts(experts=4, chosen=2, hidden={hidden})"
# Stack, depth, and ffn.
TEXT = {
    "uniform_4": ("uniform", STORED, ""),
    "uniform_8": ("uniform", APPLIED, ""),
    "looped": ("looped(loops=2)", STORED, ""),
    "looped_4_times": ("looped(loops=4)", 2, ""),
    "looped_concat": (
        "looped(loops=2, has_step_embedding=True, injection='concat')",
        STORED,
        "",
    ),
    # A prelude, a core of two layers three times on average, a coda.
    "huginn": ("huginn(loops=3, prelude=1, coda=1)", STORED, ""),
    "recursive": ("recursive(unique=4)", APPLIED, ""),
    "recursive_lora": ("recursive(unique=4, lora_rank=4)", APPLIED, ""),
    # Two layers, one five times, one.
    "cart": ("cart(loops=5, prelude=2, coda=1, heads={heads})", STORED, ""),
    "act": ("act(loops=2)", STORED, ""),
    "ponder": ("ponder(loops=2)", STORED, ""),
    # Every other layer computes half of the tokens.
    "mod": ("mod(capacity=0.5, gate='sigmoid')", APPLIED, ""),
    "wide": ("wide(unique=4)", APPLIED, ""),
    # Trained one after the other, for an evaluation of six layers at once.
    "newton": ("newton(parallel=6, weight=0.0625, stride=3)", APPLIED, ""),
    "experts_4": ("uniform", STORED, EXPERTS),
    "wide_experts": ("wide(unique=4)", APPLIED, EXPERTS),
}
# Hops beyond the first need depth: does a second pass supply it?
HOPS = {
    "uniform_2": ("uniform", 2, ""),
    "uniform_4": ("uniform", 4, ""),
    "looped": ("looped(loops=2)", 2, ""),
    "looped_concat": (
        "looped(loops=2, has_step_embedding=True, injection='concat')",
        2,
        "",
    ),
    "looped_4_times": ("looped(loops=4)", 1, ""),
    "recursive_lora": ("recursive(unique=2, lora_rank=4)", 4, ""),
    "act": ("act(loops=2)", 2, ""),
    "wide": ("wide(unique=2)", 4, ""),
}
PROBES = ("stream", "contribution", "gradient")


def get_study(scale: str = "cpu") -> Study:
    """Stacks on text, or on hops along a cycle; three seeds."""
    if scale == "hops":
        return _hops()
    if scale not in SCALES:
        raise ReslabError(f"scale {scale!r}", expected="cpu, tpu or hops")
    overrides = SCALES[scale]
    return Study(
        question=(
            "At equal stored parameters, and at equal effective depth, what do layers "
            "that are used again lose or gain on text against layers that are stored?"
        ),
        config="tiny",
        cases=chain(*_cases(TEXT, overrides["model.features"])),
        baseline="uniform_4",
        extra_baseline_seeds=0,
        overrides={"train.keep_checkpoints": 1, **overrides},
    )


def _cases(stacks: dict[str, Any], features: int) -> Iterable[Any]:
    heads = max(features // 64, 2)
    mixer = f"attention(heads={heads}, qk_norm='rms')"
    for name, (stack, depth, ffn) in stacks.items():
        wide = ffn or "swiglu(hidden={hidden})"
        # Two experts of a token are as wide as the one layer of the others.
        hidden = 3 * features // (2 if ffn else 1)
        fields = {
            "model.stack": stack.format(heads=heads),
            "model.depth": depth,
            "model.mixer": mixer,
            "model.ffn": wide.format(hidden=hidden),
            "probes.names": (*PROBES, "expert_load") if ffn else PROBES,
        }
        if stack.startswith("mod"):
            fields["probes.names"] = (*PROBES, "token_routing")
        yield case(name, fields)


def _hops() -> Study:
    return Study(
        question=(
            "Hops along a cycle need a layer each: do passes over the same layers "
            "supply that depth?"
        ),
        config="tiny",
        cases=chain(*_cases(HOPS, 64)),
        baseline="uniform_2",
        extra_baseline_seeds=0,
        overrides={
            "train.task": "graded",
            "data.source": "hops(nodes=6, hops=3, queries=12)",
            "data.length": 24,
            "data.batch": 64,
            "model.features": 64,
            "model.scales_output_by_depth": False,
            "optim.learning_rate": 4e-3,
            "optim.schedule": "cosine(warmup=20)",
            "precision.compute": "float32",
            "train.steps": 300,
            "train.eval_every": 300,
            "train.checkpoint_every": 300,
            "train.keep_checkpoints": 1,
            "eval.batch": 256,
            "eval.batches": 2,
            "probes.every": 0,
        },
    )
