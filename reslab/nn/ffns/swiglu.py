"""The gated feed-forward layer with a SiLU gate (Shazeer, 2020)."""

import flax.linen as nn
import jax

from reslab.nn.ffns._feed_forward import GatedFeedForward


class SwiGLU(GatedFeedForward):
    """Widens twice, gates one half by the other, and narrows.

        y = (silu(x . W_gate) * (x . W_up)) . W_down

    Computed in `dtype`.

    Reference: Shazeer, 2020, https://arxiv.org/abs/2002.05202, Eq. 6.

    Attributes:
      (those of `GatedFeedForward`)
    """

    def activate(self, h: jax.Array) -> jax.Array:
        """The SiLU."""
        return nn.silu(h)


build = SwiGLU
