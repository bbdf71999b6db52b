"""The gated feed-forward layer with a ReLU gate (Shazeer, 2020)."""

import flax.linen as nn
import jax

from reslab.nn.ffns._feed_forward import GatedFeedForward


class ReGLU(GatedFeedForward):
    """Widens twice, gates one half by the ReLU of the other, and narrows.

        y = (relu(x . W_gate) * (x . W_up)) . W_down

    Computed in `dtype`.

    Reference: Shazeer, 2020, https://arxiv.org/abs/2002.05202, Eq. 6. Written from the
    equation; there is no golden file of the author's code.

    Attributes:
      (those of `GatedFeedForward`)
    """

    def activate(self, h: jax.Array) -> jax.Array:
        """The ReLU."""
        return nn.relu(h)


build = ReGLU
