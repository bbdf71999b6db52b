"""Clipping per layer."""

from typing import Any

import jax.numpy as jnp
import optax

from reslab.core.precision import scaled
from reslab.optim.base.leaves import Layouts, map_leaves, norm


def clip_by_layer_norm(
    bound: float | Any, layouts: Layouts = None
) -> optax.GradientTransformation:
    """Bounds the Euclidean norm of every parameter, layer by layer.

        g_l <- g_l min(1, bound / ||g_l||)

    Stacked layers each have a norm of their own, where `optax.clip_by_block_rms` and
    its like would take one over all. Norms are taken in float32.

    Args:
      bound: The bound, or a tree of bounds like the parameters; 0 disables it.
      layouts: A tree of layouts like the parameters; None reads their shapes.

    Returns:
      A gradient transformation without state.
    """

    def clipped(layout, gradient, limit):
        if not limit:
            return gradient
        size = norm(layout, gradient)
        # Leaves a zero gradient, or one below the bound, bitwise equal.
        factor = jnp.where(size > limit, limit / jnp.maximum(size, limit), 1.0)
        return scaled(gradient, factor)

    def update(updates, params):
        del params
        if isinstance(bound, int | float):
            return map_leaves(lambda lay, g: clipped(lay, g, bound), layouts, updates)
        return map_leaves(clipped, layouts, updates, bound)

    return optax.stateless(update)
