"""A config small enough to train in a test."""

import pytest

from reslab.core import config as configs

SMALL = {
    "model.features": 32,
    "model.depth": 2,
    "model.mixer": "attention(heads=2)",
    "precision.compute": "float32",
    "data.source": "synthetic(documents=60)",
    "data.length": 16,
    "data.batch": 8,
    "optim.schedule": "cosine(warmup=2)",
    "train.steps": 12,
    "train.log_every": 4,
    "train.checkpoint_every": 4,
    "train.eval_every": 8,
    "eval.batch": 8,
    "probes.every": 0,
}


@pytest.fixture(scope="session")
def small_config():
    """Builds the small config with some fields changed."""

    def build(**changes):
        config = configs.load("base")
        fields = {key.replace("__", "."): value for key, value in changes.items()}
        return configs.update(config, (SMALL | fields).items())

    return build
