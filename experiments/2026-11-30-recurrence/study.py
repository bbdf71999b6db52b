"""What token mixers learn at equal parameters and tokens, on text and on problems.

Command:   reslab sweep experiments/2026-11-30-recurrence/study.py --pack seeds
           reslab sweep experiments/2026-11-30-recurrence/study.py:problems --pack seeds
Hardware:  2 CPU cores; with `study.py:tpu` one TPU v5e-8 host, not run yet
"""

from typing import Any

from reslab.core.errors import ReslabError
from reslab.study.algebra import case, chain, product, vary
from reslab.study.plan import Study

NEGATIVE = ", allow_negative_eigenvalues=True)"
SCALES = {
    "cpu": {
        "model.features": 64,
        "data.length": 128,
        "data.batch": 8,
        "optim.learning_rate": 6e-3,
        "train.steps": 400,
        "train.eval_every": 200,
        "train.checkpoint_every": 400,
        "eval.batches": 8,
        "precision.compute": "float32",
        "probes.every": 0,
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
# Mixer, and width of the feed-forward layer for each 64 features, which makes
# parameters equal within 0.5% at 64 features.
TEXT = {
    "attention": ("attention(heads={h}, qk_norm='rms')", 224),
    "windowed_attention": ("attention(heads={h}, qk_norm='rms', window=32)", 224),
    "latent_attention": ("latent_attention(heads={h}, rank={r}, rope_dim=16)", 220),
    "delta": ("delta(heads={h})", 220),
    "gated_delta": ("gated_delta(heads={h})", 176),
    "gated_delta_negative": ("gated_delta(heads={h}" + NEGATIVE, 176),
    "kda": ("kda(heads={h})", 176),
    "mamba": ("mamba", 140),
    "mamba2": ("mamba2(heads={g}, state_size=32)", 152),
    "retention": ("retention(heads={h})", 140),
    "rg_lru": ("rg_lru", 232),
    "short_convolution": ("short_convolution", 224),
    "lstm": ("lstm", 112),
    "gru": ("gru", 156),
}
# Each separates some of the mixers: source, tokens, tokens held out, steps.
PROBLEMS = {
    "recall": ("recall(pairs=8, keys=32)", 24, 24, 400),
    "copy": ("selective_copy(symbols=8, count=4)", 24, 24, 300),
    "parity": ("tracking(group='parity')", 16, 32, 300),
    "s3": ("tracking(group='s3')", 16, 32, 400),
}
MIXERS = {
    "attention": "attention(heads=2)",
    "delta": "delta(heads=2)",
    "delta_negative": "delta(heads=2" + NEGATIVE,
    "gated_delta": "gated_delta(heads=2)",
    "gated_delta_negative": "gated_delta(heads=2" + NEGATIVE,
    "kda_negative": "kda(heads=2" + NEGATIVE,
    "mamba2": "mamba2(heads=4, state_size=32)",
    "retention": "retention(heads=2)",
    "lstm": "lstm",
}


def get_study(scale: str = "cpu") -> Study:
    """Mixers on text, or on the problems that separate them; three seeds."""
    if scale == "problems":
        return _problems()
    if scale not in SCALES:
        raise ReslabError(f"scale {scale!r}", expected="cpu, tpu or problems")
    return _text(SCALES[scale])


def _text(overrides: dict[str, Any]) -> Study:
    features = overrides["model.features"]
    sizes = {"h": features // 32, "g": features // 16, "r": features // 2}

    def fields(mixer: Any, hidden: int, block: str = "standard") -> dict[str, Any]:
        ffn = f"swiglu(hidden={hidden * features // 64})"
        return {"model.mixer": mixer, "model.ffn": ffn, "model.block": block}

    mixers = {name: mixer.format(**sizes) for name, (mixer, _) in TEXT.items()}
    attention = mixers["attention"]
    hybrid = (mixers["gated_delta"],) * 3 + (attention,)
    return Study(
        question=(
            "Which token mixer predicts text best at equal parameters and tokens?"
        ),
        config="tiny",
        cases=chain(
            *(case(name, fields(mixers[name], TEXT[name][1])) for name in TEXT),
            case("hybrid", fields(hybrid, 188)),
            case(
                "recurrent_transformer",
                fields(attention, 224, "recurrent_transformer(tile=32)"),
            ),
        ),
        baseline="attention",
        extra_baseline_seeds=3,
        overrides={"train.keep_checkpoints": 1, **overrides},
    )


def _problems() -> Study:
    problems = [
        case(
            name,
            {
                "data.source": source,
                "data.length": length,
                "eval.length": held_out,
                "train.steps": steps,
                "train.eval_every": steps,
                "train.checkpoint_every": steps,
            },
        )
        for name, (source, length, held_out, steps) in PROBLEMS.items()
    ]
    return Study(
        question=(
            "Which mixers recall, select and track states, and which do so beyond the "
            "length that they were trained on?"
        ),
        config="tiny",
        cases=product(chain(*problems), vary("model.mixer", **MIXERS)),
        baseline={"model.mixer": MIXERS["attention"]},
        extra_baseline_seeds=0,
        overrides={
            "train.task": "graded",
            "model.features": 32,
            "model.depth": 2,
            "model.scales_output_by_depth": False,
            "data.batch": 64,
            "optim.learning_rate": 6e-3,
            "optim.schedule": "cosine(warmup=20)",
            "precision.compute": "float32",
            "train.keep_checkpoints": 1,
            "eval.batch": 256,
            "eval.batches": 2,
            "probes.every": 0,
        },
    )
