"""The two-matrix feed-forward layer with a GELU between."""

import jax

from reslab.nn.ffns._feed_forward import TwoMatrixFeedForward, gelu


class GELUFeedForward(TwoMatrixFeedForward):
    """Widens, applies a GELU, and narrows.

        y = gelu(x . W_up) . W_down

    The GELU is its tanh approximation unless `is_exact`, taken in float32 at least and
    rounded to `dtype`; the rest is computed in `dtype`.

    Reference: Hendrycks & Gimpel, 2016, https://arxiv.org/abs/1606.08415,
    Section 2; Vaswani et al., 2017, https://arxiv.org/abs/1706.03762, Eq. 2.

    Attributes:
      is_exact: Whether the GELU is exact.
      (and those of `TwoMatrixFeedForward`)
    """

    is_exact: bool = False

    def activate(self, h: jax.Array) -> jax.Array:
        """The GELU."""
        return gelu(h, self.is_exact)


build = GELUFeedForward
