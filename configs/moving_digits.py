"""An LSTM over frames: the direction in which a digit moves.

Command:   reslab train --config configs/moving_digits.py
Hardware:  2 CPU cores, about a minute
Expected:  accuracy held out 0.878, one seed
"""

from ml_collections import ConfigDict

from reslab.core.config import load


def get_config() -> ConfigDict:
    """Returns the run of the vision transformer, with clips for images."""
    config = load("digits_vit")
    model = config.model
    model.name = "frames"
    model.mixer = "lstm"
    model.position = "none"
    model.depth = 1
    config.data.source = "moving_digits"
    config.train.steps = 300
    config.probes.every = 0
    return config
