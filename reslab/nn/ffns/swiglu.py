"""The gated feed-forward layer with a SiLU gate (Shazeer, 2020)."""

import math

import flax.linen as nn
import jax

from reslab.nn.ffns._feed_forward import FeedForward


class SwiGLU(FeedForward):
    """Widens twice, gates one half by the other, and narrows.

        y = (silu(x . W_gate) * (x . W_up)) . W_down

    Computed in `dtype`.

    Reference: Shazeer, 2020, https://arxiv.org/abs/2002.05202, Eq. 6.

    Attributes:
      hidden: Hidden width; 0 is 8/3 of the features, which keeps the parameter
        count of the two-matrix layer, rounded up to a multiple of 32.
      (and those of `FeedForward`)
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, length, embed) to the same shape."""
        hidden = self.hidden or 32 * math.ceil(x.shape[-1] * 8 / 3 / 32)
        gate = nn.silu(self.widen("gate", x, hidden))
        return self.narrow(gate * self.widen("up", x, hidden), x.shape[-1])


build = SwiGLU
