"""The gated feed-forward layer with a SiLU gate (Shazeer, 2020)."""

import math

import flax.linen as nn
import jax

from reslab.core.errors import ReslabError
from reslab.nn.projection import ProjectingModule


class SwiGLU(ProjectingModule):
    """Widens twice, gates one half by the other, and narrows.

        y = (silu(x . W_gate) * (x . W_up)) . W_down

    Computed in `dtype`.

    Reference: Shazeer, 2020, https://arxiv.org/abs/2002.05202, Eq. 6.

    Attributes:
      hidden: Hidden width; 0 is 8/3 of the features, which keeps the parameter
        count of the two-matrix layer, rounded up to a multiple of 32.
      use_bias: Whether the projections have biases.
      (and those of `ProjectingModule`)
    """

    hidden: int = 0
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, length, embed) to the same shape."""
        if self.hidden < 0:
            raise ReslabError(
                "ffns 'swiglu': hidden", expected="at least 0", got=str(self.hidden)
            )
        hidden = self.hidden or 32 * math.ceil(x.shape[-1] * 8 / 3 / 32)

        def widen(name):
            axes = ("embed", "mlp")
            return self.project(name, x, hidden, axes, use_bias=self.use_bias)

        gate = nn.silu(widen("gate"))
        h = gate * widen("up")
        h = nn.with_logical_constraint(h, ("batch", "length", "mlp"))
        return self.project(
            "down",
            h,
            x.shape[-1],
            ("mlp", "embed"),
            use_bias=self.use_bias,
            scale=self.output_scale,
        )


build = SwiGLU
