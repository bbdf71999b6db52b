"""The stream and its gradients by depth: pre-norm, post-norm, hyper-connections.

Command:   reslab sweep experiments/2026-11-30-stream-by-depth/study.py --jobs 1
Hardware:  2 CPU cores
"""

from reslab.study.algebra import chain, vary
from reslab.study.plan import Study


def get_study() -> Study:
    """Three cases of twelve narrow layers: a few minutes on a laptop."""
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
        baseline={"model.placement": "pre", "model.residual": "plain"},
        # Every branch starts at full size, as in the papers.
        overrides={
            "model.scales_output_by_depth": False,
            "model.features": 64,
            "model.depth": 12,
            "model.mixer": "attention(heads=2)",
            "data.length": 64,
            "data.batch": 8,
            "train.steps": 200,
            "train.log_every": 10,
            "train.eval_every": 25,
            "train.checkpoint_every": 200,
            "train.keep_checkpoints": 1,
            "eval.batches": 2,
            "precision.compute": "float32",
            "probes.every": 20,
        },
    )
