"""A config small enough to train in a test."""

import pathlib

import pytest

from reslab.core import config as configs
from reslab.train import loop

SMALL = str(pathlib.Path(__file__).parent.with_name("small.py"))
FIELDS = {
    "train.steps": 12,
    "train.log_every": 4,
    "train.checkpoint_every": 4,
    "train.eval_every": 8,
}
BRIEF = {
    "train__steps": 4,
    "train__checkpoint_every": 2,
    "train__log_every": 1,
    "model__depth": 1,
    "model__features": 16,
    "mesh__cpu_devices": 8,
}


@pytest.fixture(scope="session")
def small_config():
    """Builds the small config with some fields changed."""

    def build(**changes):
        config = configs.load(SMALL)
        fields = {key.replace("__", "."): value for key, value in changes.items()}
        return configs.update(config, (FIELDS | fields).items())

    return build


@pytest.fixture(scope="session")
def brief_config(small_config):
    """The same with four steps of one narrow layer."""
    return lambda **changes: small_config(**BRIEF | changes)


@pytest.fixture(scope="session")
def trained(tmp_path_factory, brief_config):
    """Two brief runs that differ in their seed, whole; to be copied, not changed."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        loop.train(brief_config(seed=seed), folder / str(seed))
    return folder
