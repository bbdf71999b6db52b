"""Attention with linear biases (Press et al., 2021)."""

import jax
import jax.numpy as jnp
import numpy as np

from reslab.core.bounds import Positive, bounded
from reslab.nn.positions.none import NoPosition


@bounded
class LinearBias(NoPosition):
    """Lowers the scores of keys that are far from the query, head by head.

        score[i, j] = scale q[i] . k[j] - slope[h] (i - j)
        slope[h]    = 2 ** (-range h / heads),   h = 1 ... heads

    Embeddings, queries and keys stay as they are. Mixers that support it ask for the
    slopes; others see no position.

    Reference: Press, Smith & Lewis, 2021, https://arxiv.org/abs/2108.12409, Section 3.

    Attributes:
      range: Exponent of the last slope.
    """

    range: Positive = 8.0

    def slopes(self, heads: int) -> jax.Array:
        """Slopes (heads,), the steepest first.

        >>> LinearBias().slopes(2).tolist()
        [0.0625, 0.00390625]
        """
        return jnp.asarray(2.0 ** (-self.range * np.arange(1, heads + 1) / heads))


build = LinearBias
