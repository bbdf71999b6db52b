"""The two-matrix feed-forward layer with a SiLU between."""

import flax.linen as nn
import jax

from reslab.nn.ffns._feed_forward import TwoMatrixFeedForward


class SiLUFeedForward(TwoMatrixFeedForward):
    """Widens, multiplies each feature by its sigmoid, and narrows.

        y = silu(x . W_up) . W_down,    silu(h) = h sigmoid(h)

    Computed in `dtype`.

    Reference: Hendrycks & Gimpel, 2016, https://arxiv.org/abs/1606.08415, Section 2.

    Attributes:
      (those of `TwoMatrixFeedForward`)
    """

    def activate(self, h: jax.Array) -> jax.Array:
        """The SiLU."""
        return nn.silu(h)


build = SiLUFeedForward
