"""A run small enough for a test: a few steps of two narrow layers on made-up text."""

from reslab.core.config import load


def get_config():
    config = load("base")
    config.model.features = 32
    config.model.depth = 2
    config.model.mixer = "attention(heads=2)"
    config.precision.compute = "float32"
    config.data.source = "synthetic(documents=60)"
    config.data.length = 16
    config.data.batch = 8
    config.optim.schedule = "cosine(warmup=2)"
    config.train.steps = 4
    config.train.checkpoint_every = 2
    config.eval.batch = 8
    config.probes.every = 0
    return config
