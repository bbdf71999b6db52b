"""Figures of the kernels of each layer, averaged over the layer."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from reslab.core.trees import named_leaves
from reslab.observe.probes._view import CannotAnswer


def mean_by_layer(
    function: Callable[[jax.Array], jax.Array],
    kernels: Mapping[str, jax.Array],
    layouts: Any,
) -> jax.Array:
    """The mean of a figure over the kernels of each layer.

    Args:
      function: Maps matrices (stacked, m, n), in float32, to figures (stacked,).
      kernels: Arrays by the path of the parameter.
      layouts: The layouts of the parameters; those that are no kernels are left out.

    Returns:
      The means (layers,).

    Raises:
      CannotAnswer: If no layer has a kernel.
    """
    known = named_leaves(layouts)
    chosen = {
        name: known[name]
        for name in kernels
        if known[name].kind == "matrix" and known[name].layers
    }
    if not chosen:
        raise CannotAnswer("the model", expected="kernels in layers")
    depth = 1 + max(max(layout.layers) for layout in chosen.values())
    sums, counts = jnp.zeros(depth), jnp.zeros(depth)
    for name, layout in chosen.items():
        figures = function(layout.as_matrices(kernels[name].astype(jnp.float32)))
        # The experts of a layer count as one kernel.
        each = jnp.mean(figures.reshape(len(layout.layers), -1), axis=1)
        at = jnp.asarray(layout.layers)
        sums, counts = sums.at[at].add(each), counts.at[at].add(1.0)
    return sums / jnp.maximum(counts, 1.0)
