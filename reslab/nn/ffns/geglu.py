"""The gated feed-forward layer with a GELU gate (Shazeer, 2020)."""

import jax

from reslab.nn.ffns._feed_forward import GatedFeedForward, gelu


class GEGLU(GatedFeedForward):
    """Widens twice, gates one half by the GELU of the other, and narrows.

        y = (gelu(x . W_gate) * (x . W_up)) . W_down

    The GELU is its tanh approximation unless `is_exact`, taken in float32 at least and
    rounded to `dtype`; everything else is computed in `dtype`.

    Reference: Shazeer, 2020, https://arxiv.org/abs/2002.05202, Eq. 6. Written from the
    equation; there is no golden file of the author's code.

    Attributes:
      is_exact: Whether the GELU is exact.
      (and those of `GatedFeedForward`)
    """

    is_exact: bool = False

    def activate(self, h: jax.Array) -> jax.Array:
        """The GELU."""
        return gelu(h, self.is_exact)


build = GEGLU
