"""Only the gains and biases of a network's norms learn (Frankle et al., 2021).

Command:   reslab train --config configs/digits_norms_only.py
Hardware:  2 CPU cores
Beside it: the same network of which only the head learns,
           --set "optim.groups=(('head/', {}), ('.', {'freeze': True}))"

Everything else stays as it was drawn, bit for bit; running statistics go on. The
paper draws gains from U(0, 1) or starts them at one, as here, and has SGD.

Reference: Frankle et al., 2021, https://arxiv.org/abs/2003.00152.
"""

from ml_collections import ConfigDict

from reslab.core.config import load


def get_config() -> ConfigDict:
    """Returns the residual network on digits, all but its norms frozen."""
    config = load("digits_resnet")
    config.model.depth = 2
    config.optim.groups = (
        (r"norm(_\d)?/(gain|bias)$", {"weight_decay": 0.0}),
        (".", {"freeze": True}),
    )
    config.optim.learning_rate = 1e-2
    config.train.steps = 600
    return config
