"""A small vision transformer on the digits that come with scikit-learn.

Command:   reslab train --config configs/digits_vit.py
Hardware:  2 CPU cores, about a minute
Expected:  accuracy held out 0.961, one seed
"""

from ml_collections import ConfigDict

from reslab.core.config import load


def get_config() -> ConfigDict:
    """Returns the residual network's run, with the layers of a language model."""
    config = load("digits_resnet")
    model = config.model
    model.name = "vit(patch=2)"
    model.norm = "layer"
    model.ffn = "gelu"
    model.position = "learned"
    model.features = 64
    model.depth = 2
    config.train.steps = 600
    config.probes.every = 100
    return config
