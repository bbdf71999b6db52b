"""Factors of a scaling on one parameter."""

import dataclasses
from collections.abc import Callable
from typing import Any

from reslab.core.layout import Layout


@dataclasses.dataclass(frozen=True)
class Scale:
    """Factors on the options of the optimizer.

    Attributes:
      lr: Factor on the learning rate, decay included: a number, one for each layer
        of a stacked parameter, or a function from the step to either. Slices of
        factor 0 are frozen.
      weight_decay: Factor on the weight decay.
      epsilon: Factor on Adam's epsilon.
    """

    lr: Any = 1.0
    weight_decay: float = 1.0
    epsilon: float = 1.0


Rule = Callable[[str, Layout, int], Scale]
