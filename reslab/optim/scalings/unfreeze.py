"""Gradual unfreezing from the top (Howard & Ruder, 2018)."""

import jax.numpy as jnp
import numpy as np

from reslab.core.bounds import Count, Whole, bounded
from reslab.core.layout import Layout
from reslab.optim.base.scale import Rule, Scale


@bounded
def build(
    every: Count = 100,
    rise: Whole = 0,
) -> Rule:
    """Starts with the head alone and lets one more layer learn at intervals.

    Layer l (of L, from 1) learns from step (L - l + 1) `every` on, the embedding
    last. A schedule that depends on the layer: with `rise`, its factor grows from
    0 to 1 over this many steps.

    Reference: Howard & Ruder, 2018, https://arxiv.org/abs/1801.06146, Section 3.3,
    where an interval is an epoch.

    Args:
      every: Steps between two layers.
      rise: Steps over which a layer's factor grows to 1.

    Returns:
      The rule.

    Raises:
      ReslabError: If the interval is below 1 or the rise negative.
    """

    def rule(name: str, layout: Layout, depth: int) -> Scale:
        del name
        if layout.layers:
            begin = every * (depth - np.asarray(layout.layers))
        elif layout.kind == "embedding":
            begin = np.asarray(every * (depth + 1))
        else:
            return Scale()
        begin = begin.astype(np.float32)

        def factor(step):
            since = jnp.asarray(step, jnp.float32) - begin
            return jnp.clip((since + 1) / (rise + 1), 0.0, 1.0)

        return Scale(factor)

    return rule
