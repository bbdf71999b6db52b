"""Rotary position embedding (Su et al., 2021)."""

import math
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp

from reslab.core.bounds import Bounds, Count, Positive, bounded
from reslab.core.errors import ReslabError
from reslab.core.precision import statistics_dtype
from reslab.nn.positions.none import NoPosition


@bounded
class RotaryPosition(NoPosition):
    """Rotates pairs of query and key features by angles linear in position.

        angle_i = position * frequency_i,   frequency_i = base ** (-2 i / size)
        (a, b)  = (a cos - b sin, b cos + a sin)

    `size` is head_dim, or the first `fraction` of it: the features after those keep
    their values. Feature i is paired with feature i + size/2 (the "rotate half" layout
    of Llama checkpoints); if `is_interleaved`, features 2i and 2i + 1 are a pair.
    Angles and rotation are computed in float32; the output has the dtype of the input.

    A model trained on short sequences is stretched by slower rotations, at all lengths:

        "linear"   frequency / factor
        "llama3"   frequency / factor    if original_length / wavelength < low
                   frequency             if original_length / wavelength > high
                   between the two, linear in original_length / wavelength

    Reference: Su et al., 2021, https://arxiv.org/abs/2104.09864, Eq. 15, 34;
    linear: Chen et al., 2023, https://arxiv.org/abs/2306.15595, Eq. 4; llama3:
    Grattafiori et al., 2024, https://arxiv.org/abs/2407.21783, by the published code.

    Attributes:
      base: The wavelength base.
      fraction: Share of the features of a head that is rotated.
      is_interleaved: Whether pairs are neighbours, as in the paper.
      scaling: How frequencies are stretched.
      factor: By how much.
      low: Wavelengths of `original_length` that are stretched in full, for "llama3".
      high: Wavelengths of `original_length` that are left alone, for "llama3".
      original_length: Longest sequence of the first training, for "llama3".
    """

    base: Annotated[float, Bounds(least=1, most=10**12)] = 10_000.0
    fraction: Annotated[float, Bounds(above=0, most=1)] = 1.0
    is_interleaved: bool = False
    scaling: Literal["none", "linear", "llama3"] = "none"
    factor: Positive = 1.0
    low: Positive = 1.0
    high: Positive = 4.0
    original_length: Count = 8192

    def rotate(self, x: jax.Array, positions: jax.Array) -> jax.Array:
        """Rotates (batch, length, heads, head_dim) by positions (batch, length).

        Raises:
          ReslabError: If head_dim, or the part of it that is rotated, is odd; or `high`
            is not above `low`.
        """
        size = int(x.shape[-1] * self.fraction)
        if size % 2 or not size:
            name = "head_dim" if self.fraction == 1 else "head_dim * fraction"
            raise ReslabError(
                f"positions 'rope': {name}", expected="even", got=f"{size}"
            )
        dtype = statistics_dtype(x.dtype)
        x, rest = x[..., :size], x[..., size:]
        frequency = self._frequencies(size, dtype)
        angle = positions[..., None, None].astype(dtype) * frequency[None, None, None]
        sine, cosine = jnp.sin(angle), jnp.cos(angle)
        wide = x.astype(dtype)
        if self.is_interleaved:
            a, b = wide[..., 0::2], wide[..., 1::2]
        else:
            a, b = jnp.split(wide, 2, axis=-1)
        rotated = [a * cosine - b * sine, b * cosine + a * sine]
        rotated = [part.astype(x.dtype) for part in rotated]
        if self.is_interleaved:
            rotated = [jnp.stack(rotated, axis=-1).reshape(x.shape)]
        return jnp.concatenate([*rotated, rest], axis=-1)

    def _frequencies(self, size: int, dtype: Any) -> jax.Array:
        """Rotations per token of each pair (size / 2,), in radians."""
        exponent = jnp.arange(size // 2, dtype=dtype) * (-2 / size)
        frequency = jnp.asarray(self.base, dtype) ** exponent
        if self.scaling == "none":
            return frequency
        slow = frequency / self.factor
        if self.scaling == "linear":
            return slow
        if self.high <= self.low:
            raise ReslabError(
                "positions 'rope': high",
                expected=f"above low ({self.low:g})",
                got=f"{self.high:g}",
            )
        turns = frequency * (self.original_length / (2 * math.pi))
        share = jnp.clip((turns - self.low) / (self.high - self.low), 0, 1)
        return (1 - share) * slow + share * frequency


build = RotaryPosition
