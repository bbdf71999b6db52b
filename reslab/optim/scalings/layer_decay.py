"""Layer-wise decay of the learning rate (Howard & Ruder, 2018)."""

import numpy as np

from reslab.core.bounds import Positive, bounded
from reslab.core.layout import Layout
from reslab.optim.base.scale import Rule, Scale


@bounded
def build(decay: Positive = 0.9) -> Rule:
    """Lets every layer learn slower than the one above it.

        factor of layer l (of L, from 1) = decay ** (L - l)

    The embedding counts as layer 0; head and final norm keep the full rate. Some
    codes count the head as a layer more, which is a constant factor on all others.

    Reference: Howard & Ruder, 2018, https://arxiv.org/abs/1801.06146, Section 3.2
    (with decay 1/2.6).

    Args:
      decay: Factor from a layer to the one below.

    Returns:
      The rule.

    Raises:
      ReslabError: If the factor is not positive.
    """

    def rule(name: str, layout: Layout, depth: int) -> Scale:
        del name
        if layout.layers:
            return Scale(decay ** (depth - 1.0 - np.asarray(layout.layers)))
        return Scale(decay**depth if layout.kind == "embedding" else 1.0)

    return rule
