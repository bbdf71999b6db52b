"""A byte-level decoder on the standard library's source, for a laptop.

Command:   reslab train --config configs/tiny.py
"""

from ml_collections import ConfigDict

from reslab.core.config import load


def get_config() -> ConfigDict:
    """Returns the schema's defaults, which are this run."""
    config = load("base")
    config.train.steps = 800
    return config
