"""Rotary position embedding (Su et al., 2021)."""

from typing import Annotated

import jax
import jax.numpy as jnp

from reslab.core.bounds import Bounds, bounded
from reslab.core.errors import ReslabError
from reslab.core.precision import statistics_dtype
from reslab.nn.positions.none import NoPosition


@bounded
class RotaryPosition(NoPosition):
    """Rotates pairs of query and key features by angles linear in position.

        angle_i = position * base ** (-2 i / head_dim)
        (a, b)  = (a cos - b sin, b cos + a sin)

    Feature i is paired with feature i + head_dim/2 (the "rotate half" layout of
    Llama checkpoints). Angles and rotation are computed in float32; the output
    has the dtype of the input.

    Reference: Su et al., 2021, https://arxiv.org/abs/2104.09864, Eq. 15, 34.

    Attributes:
      base: The wavelength base.
    """

    base: Annotated[float, Bounds(least=1, most=10**12)] = 10_000.0

    def rotate(self, x: jax.Array, positions: jax.Array) -> jax.Array:
        """Rotates (batch, length, heads, head_dim) by positions (batch, length).

        Raises:
          ReslabError: If head_dim is odd.
        """
        head_dim = x.shape[-1]
        if head_dim % 2:
            raise ReslabError(
                "positions 'rope': head_dim", expected="even", got=str(head_dim)
            )
        dtype = statistics_dtype(x.dtype)
        exponent = jnp.arange(head_dim // 2, dtype=dtype) * (-2 / head_dim)
        frequency = jnp.asarray(self.base, dtype) ** exponent
        angle = positions[..., None, None].astype(dtype) * frequency[None, None, None]
        sine, cosine = jnp.sin(angle), jnp.cos(angle)
        a, b = jnp.split(x.astype(dtype), 2, axis=-1)
        rotated = [a * cosine - b * sine, b * cosine + a * sine]
        return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


build = RotaryPosition
