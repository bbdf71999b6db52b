"""The short causal convolution that recurrent mixers put before their keys."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.parameters import parameter
from reslab.nn.base import ragged


class ShortConvolution(nn.Module):
    """Mixes each channel with its own last few values, inside one document.

        y[t] = silu(sum_i taps[i] * x[t - i] + bias)

    Attributes:
      width: Number of taps.
      dtype: Compute dtype.
      param_dtype: Dtype in which the taps are stored.
      axes: Logical names of the axes behind length.
      use_bias: Whether to add a learned bias.
      is_activated: Whether a silu follows.
    """

    width: int = 4
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    axes: tuple[str | None, ...] = ("heads", "head_dim")
    use_bias: bool = False
    is_activated: bool = True

    @nn.compact
    def __call__(
        self, x: jax.Array, segments: jax.Array | None, tail: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Convolves (batch, length, ...) along length.

        Args:
          x: The input.
          segments: Document of each token; taps do not reach across documents. With
            a tail, 0 marks padding, which is passed by.
          tail: The `width - 1` inputs before `x`, oldest first, or None.

        Returns:
          The output, and the new tail if one was given.
        """
        taps = parameter(
            self,
            "taps",
            nn.initializers.normal(self.width**-0.5),
            (self.width, *x.shape[2:]),
            (None, *self.axes),
            self.param_dtype,
        ).astype(self.dtype)
        reach, length = self.width - 1, x.shape[1]
        padding = [(0, 0), (reach, 0), *[(0, 0)] * len(self.axes)]
        is_real = None if tail is None else ragged.real_tokens(segments)
        empty = jnp.pad(x, padding)
        past = empty if tail is None else ragged.append(tail, x, is_real)
        y = jnp.zeros_like(x)
        for back in range(self.width):
            shifted = jax.lax.slice_in_dim(
                past, reach - back, reach - back + length, axis=1
            )
            if segments is not None and back and tail is None:
                before = jnp.pad(segments, ((0, 0), (back, 0)))[:, :length]
                is_same = (before == segments).reshape(
                    *segments.shape, *[1] * len(self.axes)
                )
                shifted = jnp.where(is_same, shifted, jnp.zeros_like(shifted))
            y = y + taps[back][None, None] * shifted
        if self.use_bias:
            zeros, shape = nn.initializers.zeros, x.shape[2:]
            bias = parameter(self, "bias", zeros, shape, self.axes, self.param_dtype)
            y = y + bias.astype(self.dtype)[None, None]
        y = ragged.restore_order(nn.silu(y) if self.is_activated else y, is_real)
        return y, None if tail is None else past[:, length:]
