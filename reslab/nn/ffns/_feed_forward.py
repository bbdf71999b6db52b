"""What feed-forward layers share: a hidden width, widened to and narrowed from."""

import flax.linen as nn
import jax

from reslab.core.errors import ReslabError
from reslab.nn.projection import ProjectingModule


class FeedForward(ProjectingModule):
    """Base of the feed-forward layers with one hidden width.

    Attributes:
      hidden: Hidden width; 0 is the layer's own default.
      use_bias: Whether the projections have biases.
      (and those of `ProjectingModule`)

    Raises:
      ReslabError: If `hidden` is negative.
    """

    hidden: int = 0
    use_bias: bool = False

    def __post_init__(self):
        if self.hidden < 0:
            raise ReslabError(
                "ffns: hidden", expected="at least 0", got=f"{self.hidden}"
            )
        super().__post_init__()

    def widen(self, name: str, x: jax.Array, hidden: int) -> jax.Array:
        """Projects (batch, length, embed) to (batch, length, hidden)."""
        axes = ("embed", "mlp")
        return self.project(
            name, x, hidden, axes, use_bias=self.use_bias, scale=self.inner_scale
        )

    def narrow(self, h: jax.Array, features: int) -> jax.Array:
        """Projects (batch, length, hidden) back, to write into the stream."""
        h = nn.with_logical_constraint(h, ("batch", "length", "mlp"))
        h = self.normalize_inner(h, "mlp")
        return self.project(
            "down",
            h,
            features,
            ("mlp", "embed"),
            use_bias=self.use_bias,
            scale=self.output_scale,
        )
