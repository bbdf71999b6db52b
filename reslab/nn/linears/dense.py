"""The dense projection."""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.parameters import parameter


class Dense(nn.Module):
    """Multiplies the last axes of the input by a learned kernel.

        y = x . kernel (+ bias)

    Kernel entries start normal with standard deviation `init_std`, or
    1/sqrt(fan in) where that is 0, times `scale`; biases start at zero. The
    product is taken in `dtype`.

    Attributes:
      features: Shape of the output axes.
      kernel_axes: Logical names of the kernel's axes; those beyond the output
        axes are contracted with the last axes of the input.
      use_bias: Whether to add a learned bias.
      scale: Factor on the initial standard deviation.
      init_std: Initial standard deviation; 0 is 1/sqrt(fan in).
      dtype: Compute dtype.
      param_dtype: Dtype in which kernel and bias are stored.
    """

    features: int | Sequence[int]
    kernel_axes: Sequence[str | None] = ("embed", "mlp")
    use_bias: bool = False
    scale: float = 1.0
    init_std: float = 0.0
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., inputs) to (..., features)."""
        features = (
            (self.features,) if isinstance(self.features, int) else tuple(self.features)
        )
        contracted = len(self.kernel_axes) - len(features)
        inputs = x.shape[x.ndim - contracted :]
        std = (self.init_std or 1 / math.sqrt(math.prod(inputs))) * self.scale
        kernel = parameter(
            self,
            "kernel",
            nn.initializers.normal(std),
            (*inputs, *features),
            self.kernel_axes,
            self.param_dtype,
        )
        first = x.ndim - contracted
        y = jax.lax.dot_general(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            ((tuple(range(first, x.ndim)), tuple(range(contracted))), ((), ())),
        )
        if self.use_bias:
            bias = parameter(
                self,
                "bias",
                nn.initializers.zeros,
                features,
                self.kernel_axes[contracted:],
                self.param_dtype,
            )
            y = y + bias.astype(self.dtype).reshape((1,) * first + features)
        return y


build = Dense
