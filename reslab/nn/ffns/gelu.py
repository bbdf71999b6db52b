"""The two-matrix feed-forward layer with a GELU between."""

import flax.linen as nn
import jax

from reslab.nn.ffns._feed_forward import FeedForward


class GELUFeedForward(FeedForward):
    """Widens, applies a GELU, and narrows.

        y = gelu(x . W_up) . W_down

    The GELU is its tanh approximation. Computed in `dtype`.

    Reference: Hendrycks & Gimpel, 2016, https://arxiv.org/abs/1606.08415,
    Section 2; Vaswani et al., 2017, https://arxiv.org/abs/1706.03762, Eq. 2.

    Attributes:
      hidden: Hidden width; 0 is 4 times the features.
      (and those of `FeedForward`)
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, length, embed) to the same shape."""
        h = nn.gelu(self.widen("up", x, self.hidden or 4 * x.shape[-1]))
        return self.narrow(h, x.shape[-1])


build = GELUFeedForward
