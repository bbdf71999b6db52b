"""The first studies' effects, with a small embedding and with a norm after it.

Command:   reslab sweep experiments/2026-11-30-baseline/study.py --pack seeds
Hardware:  2 CPU cores; with `study.py:tpu` one TPU v5e-8 host, not run yet
"""

from reslab.core.errors import ReslabError
from reslab.study.algebra import case, chain, product, vary
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
        "train.checkpoint_every": 300,
        "eval.batches": 4,
        "precision.compute": "float32",
        "probes.every": 300,
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


def get_study(scale: str = "cpu") -> Study:
    """Six cases, each with both embeddings; three seeds."""
    if scale not in SCALES:
        raise ReslabError(f"scale {scale!r}", expected=" or ".join(SCALES))
    attention = f"attention(heads={2 if scale == 'cpu' else 12})"
    values = attention[:-1] + ", value_path='value_residual')"
    # Peri-LN is sandwich with a norm after the embedding.
    same = {
        "model.placement": "pre",
        "model.residual": "plain",
        "model.mixer": attention,
    }
    changes = {
        "pre": {},
        "mix_ln": {"model.placement": "mix_ln"},
        "sandwich": {"model.placement": "sandwich"},
        "peri": {"model.placement": "peri"},
        "attnres": {"model.residual": "attnres"},
        "value_residual": {"model.mixer": values},
    }
    return Study(
        question=(
            "Which effects of placements and residuals are left once the baseline's "
            "embedding enters the stream at the size of what branches add?"
        ),
        config="tiny",
        cases=product(
            vary("model.post_embedding_norm", small="none", normed="rms"),
            chain(*(case(name, same | fields) for name, fields in changes.items())),
        ),
        seeds=(0, 1, 2),
        extra_baseline_seeds=0,
        baseline=same,
        overrides={
            # Every branch starts at full size, as in the first studies.
            "model.scales_output_by_depth": False,
            "train.keep_checkpoints": 1,
            **SCALES[scale],
        },
    )
