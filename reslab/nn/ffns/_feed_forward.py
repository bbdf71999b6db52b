"""Base of feed-forward layers: a hidden width between two projections."""

import functools
import math
from typing import ClassVar

import flax.linen as nn
import jax

from reslab.core import registry, surroundings
from reslab.core.bounds import Whole, bounded
from reslab.core.precision import statistics_dtype
from reslab.core.taps import editable
from reslab.nn.base.norm import make_norm
from reslab.nn.base.projection import ProjectingModule


@bounded
class FeedForward(ProjectingModule):
    """Base of the feed-forward layers with one hidden width.

    Attributes:
      hidden: Hidden width; 0 is the layer's own default.
      hidden_scale: Factor on that default, of blocks with several such layers.
      use_bias: Whether the projections have biases.
      activation_norm: Norm of each widened half, before the activation; "" disables it.
      (and those of `ProjectingModule`)

    Raises:
      ReslabError: If `hidden` is negative.
    """

    hidden: Whole = 0
    hidden_scale: float = 1.0
    use_bias: bool = False
    activation_norm: registry.Spec = ""

    # Degree of growth: large inputs of size s give outputs of size s to this power.
    degree: ClassVar[int] = 1

    def project_up(self, name: str, x: jax.Array, hidden: int) -> jax.Array:
        """Projects (batch, length, embed) to (batch, length, hidden)."""
        axes = ("embed", "mlp")
        h = self.project(
            name, x, hidden, axes, use_bias=self.use_bias, scale=self.inner_scale
        )
        if not self.activation_norm:
            return h
        return make_norm(
            self.activation_norm,
            **surroundings.Norms(logical_axis="mlp"),
            param_dtype=self.param_dtype,
            # Otherwise it would be a submodule of the caller.
            parent=self,
            name=f"{name}_norm",
        )(h)

    def project_down(self, h: jax.Array, features: int) -> jax.Array:
        """Projects (batch, length, hidden) back, to write into the stream."""
        h = nn.with_logical_constraint(h, ("batch", "length", "mlp"))
        h = editable(self, "neurons", self.normalize_inner(h, "mlp"))
        return self.project(
            "down",
            h,
            features,
            ("mlp", "embed"),
            use_bias=self.use_bias,
            scale=self.output_scale,
        )


@functools.partial(jax.checkpoint, static_argnums=1)
def gelu(h: jax.Array, is_exact: bool = False) -> jax.Array:
    """The GELU by its tanh approximation, in float32 at least and rounded once.

    In bfloat16 its constants would be rounded as well. The backward pass computes it
    again from `h`, so that nothing in float32 is kept for it.

    Args:
      h: Any array.
      is_exact: Whether to take the error function instead of its approximation.
    """
    wide = h.astype(statistics_dtype(h.dtype))
    return nn.gelu(wide, approximate=not is_exact).astype(h.dtype)


class TwoMatrixFeedForward(FeedForward):
    """Base of the layers that widen, apply a function to each token, and narrow.

        y = activate(x . W_up) . W_down

    Attributes:
      hidden: Hidden width; 0 is 4 times the features.
      (and those of `FeedForward`)
    """

    def activate(self, h: jax.Array) -> jax.Array:
        """The function between the two products; keeps shape and dtype."""
        raise NotImplementedError

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, length, embed) to the same shape."""
        features = x.shape[-1]
        hidden = self.hidden or math.ceil(4 * features * self.hidden_scale)
        return self.project_down(
            self.activate(self.project_up("up", x, hidden)), features
        )


class GatedFeedForward(FeedForward):
    """Base of the layers that widen twice, gate one half by the other, and narrow.

        y = (activate(x . W_gate) * (x . W_up)) . W_down

    Attributes:
      hidden: Hidden width; 0 is 8/3 of the features, which keeps the parameter
        count of the two-matrix layer, rounded up to a multiple of 32.
      (and those of `FeedForward`)
    """

    degree: ClassVar[int] = 2

    def activate(self, h: jax.Array) -> jax.Array:
        """The function of the gate; keeps shape and dtype."""
        raise NotImplementedError

    def gated(self, gate: jax.Array, up: jax.Array) -> jax.Array:
        """One half gated by the other; keeps shape and dtype."""
        return self.activate(gate) * up

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, length, embed) to the same shape."""
        features = x.shape[-1]
        wanted = features * 8 / 3 * self.hidden_scale
        hidden = self.hidden or 32 * math.ceil(wanted / 32)
        gate = self.project_up("gate", x, hidden)
        h = self.gated(gate, self.project_up("up", x, hidden))
        return self.project_down(h, features)
