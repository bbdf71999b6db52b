"""The two-matrix feed-forward layer with a GELU between."""

import flax.linen as nn
import jax

from reslab.core.errors import ReslabError
from reslab.nn.projection import ProjectingModule


class GELUFeedForward(ProjectingModule):
    """Widens, applies a GELU, and narrows.

        y = gelu(x . W_up) . W_down

    The GELU is its tanh approximation. Computed in `dtype`.

    Reference: Hendrycks & Gimpel, 2016, https://arxiv.org/abs/1606.08415,
    Section 2; Vaswani et al., 2017, https://arxiv.org/abs/1706.03762, Eq. 2.

    Attributes:
      hidden: Hidden width; 0 is 4 times the features.
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
                "ffns 'gelu': hidden", expected="at least 0", got=str(self.hidden)
            )
        hidden = self.hidden or 4 * x.shape[-1]

        def widen(name):
            axes = ("embed", "mlp")
            return self.project(name, x, hidden, axes, use_bias=self.use_bias)

        h = nn.gelu(widen("up"))
        h = nn.with_logical_constraint(h, ("batch", "length", "mlp"))
        return self.project(
            "down",
            h,
            x.shape[-1],
            ("mlp", "embed"),
            use_bias=self.use_bias,
            scale=self.output_scale,
        )


build = GELUFeedForward
