"""Convolutions of image models."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.layout import WINDOW
from reslab.core.parameters import parameter


class Convolution(nn.Module):
    """A square convolution without bias, zero-padded; starts as He et al. (2015).

    Reference: https://arxiv.org/abs/1502.01852, Eq. 10.

    Attributes:
      features: Channels of the output.
      size: Height and width of the kernel, odd.
      stride: Stride along both axes.
      is_depthwise: Whether every channel has a kernel of its own, and sees no other.
      dtype: Compute dtype.
      param_dtype: Dtype in which the kernel is stored.
    """

    features: int
    size: int
    stride: int = 1
    is_depthwise: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (batch, height, width, channels) to (..., features)."""
        groups = self.features if self.is_depthwise else 1
        shape = (self.size, self.size, x.shape[-1] // groups, self.features)
        kernel = parameter(
            self,
            "kernel",
            nn.initializers.he_normal(),
            shape,
            # A depthwise convolution does not mix channels: it has no matrix.
            (None, None, None, "embed") if self.is_depthwise else (*WINDOW, "embed"),
            self.param_dtype,
        )
        pad = self.size // 2
        return jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (self.stride, self.stride),
            [(pad, pad)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )
