"""The two-matrix feed-forward layer with a ReLU between."""

import flax.linen as nn
import jax

from reslab.nn.ffns._feed_forward import TwoMatrixFeedForward


class ReLUFeedForward(TwoMatrixFeedForward):
    """Widens, sets negative numbers to zero, and narrows.

        y = max(x . W_up, 0) . W_down

    Reference: Vaswani et al., 2017, https://arxiv.org/abs/1706.03762, Eq. 2.

    Attributes:
      (those of `TwoMatrixFeedForward`)
    """

    def activate(self, h: jax.Array) -> jax.Array:
        """The ReLU."""
        return nn.relu(h)


build = ReLUFeedForward
