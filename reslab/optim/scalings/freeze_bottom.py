"""Freezing of the lower layers (Telly-K; Shi et al., 2023)."""

import numpy as np

from reslab.core.bounds import Whole, bounded
from reslab.core.layout import Layout
from reslab.optim.base.scale import Rule, Scale


@bounded
def build(count: Whole = 1) -> Rule:
    """Freezes the embedding and the first layers.

    Frozen slices stay bit for bit and do not count in the clipped norm. Where all
    slices of a parameter are frozen it has no optimizer state.

    Reference: Shi et al., 2023, https://arxiv.org/abs/2304.05216, Section 4 (K
    frozen layers of an encoder; the code's readme was read, not run).

    Args:
      count: How many layers are frozen; 0 freezes the embedding alone.

    Returns:
      The rule.

    Raises:
      ReslabError: If the number is negative.
    """

    def rule(name: str, layout: Layout, depth: int) -> Scale:
        del name, depth
        if layout.layers:
            return Scale(np.where(np.asarray(layout.layers) < count, 0.0, 1.0))
        return Scale(0.0 if layout.kind == "embedding" else 1.0)

    return rule
