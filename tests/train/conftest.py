"""A config small enough to train in a test."""

import pathlib

import pytest

from reslab.core import config as configs

SMALL = str(pathlib.Path(__file__).parent.with_name("small.py"))
FIELDS = {
    "train.steps": 12,
    "train.log_every": 4,
    "train.checkpoint_every": 4,
    "train.eval_every": 8,
}


@pytest.fixture(scope="session")
def small_config():
    """Builds the small config with some fields changed."""

    def build(**changes):
        config = configs.load(SMALL)
        fields = {key.replace("__", "."): value for key, value in changes.items()}
        return configs.update(config, (FIELDS | fields).items())

    return build
