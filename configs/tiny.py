"""A byte-level decoder on the standard library's source, for a laptop.

Command:   reslab train --config configs/tiny.py
Hardware:  2 CPU cores: 80 to 225 s in all at 20,000 to 7,000 tokens/s (bfloat16)
Expected:  1.81 bits per byte held out; a trigram count model has 2.55
"""

from ml_collections import ConfigDict

from reslab.core.config import load


def get_config() -> ConfigDict:
    """Returns the schema's defaults, which are this run."""
    config = load("base")
    config.train.steps = 600
    return config
