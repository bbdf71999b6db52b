"""Second moments of what a layer reads."""

from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp

from reslab.core.precision import statistics_dtype


def gram(x: jax.Array) -> jax.Array:
    """X' X / b of inputs (..., inputs), b of them in all; (inputs, inputs)."""
    rows = x.astype(statistics_dtype(x.dtype)).reshape(-1, x.shape[-1])
    return rows.T @ rows / rows.shape[0]


def patch_gram(
    x: jax.Array,
    window: Sequence[int],
    strides: Sequence[int],
    padding: Any = "VALID",
) -> jax.Array:
    """The same for a convolution of images (batch, height, width, channels).

    A patch embedding is one whose strides are its window.

    Args:
      x: The images.
      window: Height and width of the kernel.
      strides: Its strides.
      padding: Its padding, as in `jax.lax`.

    Returns:
      A matrix over (height, width, channels), in the order of a Flax kernel.

    Raises:
      AssertionError: If the images have other axes.
    """
    chex.assert_rank(x, 4)
    axes = ("NHWC", "HWIO", "NHWC")
    exact = x.astype(statistics_dtype(x.dtype))
    patches = jax.lax.conv_general_dilated_patches(
        exact, tuple(window), tuple(strides), padding, dimension_numbers=axes
    )
    # Patches have the channel first.
    parts = patches.reshape(*patches.shape[:-1], x.shape[-1], *window)
    return gram(jnp.moveaxis(parts, -3, -1).reshape(*patches.shape[:-1], -1))
