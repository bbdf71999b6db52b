"""Base of norms: parameters with one number per feature, or a single number."""

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.parameters import parameter
from reslab.core.precision import statistics_dtype


class FeatureNorm(nn.Module):
    """Base of norms with a gain for each feature.

    Attributes:
      is_gain_offset: Whether the gain is stored as an offset from one, so that
        weight decay pulls it toward one; else it is stored as itself.
      gain_start: Factor on each feature at initialization: "one", "zero", or drawn
        evenly between the two, "uniform" (Frankle et al., 2020,
        https://arxiv.org/abs/2003.00152, for networks whose norms alone learn).
      param_dtype: Dtype in which parameters are stored.
      logical_axis: Logical name of the normalized axis.
    """

    is_gain_offset: bool = True
    gain_start: Literal["one", "zero", "uniform"] = "one"
    param_dtype: Any = jnp.float32
    logical_axis: str = "embed"

    def row(self, name: str, init: Callable[..., Any], h: jax.Array) -> jax.Array:
        """A parameter for each feature of `h`, shaped to meet it, at least float32."""
        axes = (self.logical_axis,)
        row = parameter(self, name, init, h.shape[-1:], axes, self.param_dtype)
        shape = (1,) * (h.ndim - 1) + (-1,)
        return row.astype(statistics_dtype(h.dtype)).reshape(shape)

    def gain_row(self, h: jax.Array) -> jax.Array:
        """Returns the factor on each feature of `h`, `gain_start` at initialization."""
        offset = 1.0 if self.is_gain_offset else 0.0

        def init(key, shape, dtype):
            if self.gain_start == "uniform":
                return jax.random.uniform(key, shape, dtype) - offset
            return jnp.full(shape, (self.gain_start == "one") - offset, dtype)

        return offset + self.row("gain", init, h)


class AffineNorm(FeatureNorm):
    """Base of norms that end in a gain and a bias for each feature.

    Attributes:
      use_gain: Whether to learn a per-feature gain.
      use_bias: Whether to learn a per-feature bias.
      (and those of `FeatureNorm`)
    """

    use_gain: bool = True
    use_bias: bool = True

    def affine(self, h: jax.Array) -> jax.Array:
        """Applies gain and bias to `h` of shape (..., features)."""
        if self.use_gain:
            h = h * self.gain_row(h)
        if self.use_bias:
            h = h + self.row("bias", nn.initializers.zeros, h)
        return h


def scalar(module: nn.Module, name: str, start: float, dtype: Any) -> jax.Array:
    """A parameter of one number, `start` at initialization, stored in `dtype`."""
    return parameter(module, name, nn.initializers.constant(start), (), (), dtype)
