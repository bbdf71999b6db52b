"""Rotation of queries and keys as retention has it."""

import jax
import jax.numpy as jnp
import numpy as np


def rotated(x: jax.Array, positions: jax.Array) -> jax.Array:
    """Rotates feature i with feature i + half, by angles linear in position.

    Frequencies go from 1 to 1/10,000 inclusive, unlike those of `positions/rope`.

    Args:
      x: Queries or keys (batch, length, heads, head_dim).
      positions: Position of each token (batch, length).

    Returns:
      The shape and dtype of `x`.
    """
    half = x.shape[-1] // 2
    frequency = jnp.asarray(10_000.0 ** -np.linspace(0, 1, half), x.dtype)
    angle = positions[..., None, None].astype(x.dtype) * frequency[None, None, None]
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cosine - b * sine, b * cosine + a * sine], axis=-1)
