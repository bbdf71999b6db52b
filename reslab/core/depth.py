"""Where the layers are in a parameter tree."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reslab.core.errors import ReslabError
from reslab.core.trees import named_leaves

# Stacks of layers are stored as scans of periods of blocks: the leaf
# `<stack>/segment_i/block_j/...` holds, along axis 0, the layers number
# j, j + period, j + 2 period, ... of segment i.
_LAYERED = re.compile(r"^(.*?)segment_(\d+)/block_(\d+)/")


def layer_numbers(tree: Any) -> dict[str, np.ndarray]:
    """Which layers the slices of each stacked leaf belong to.

    Args:
      tree: Parameters, or any tree like them; leaves are arrays or shapes.

    Returns:
      For the path of every leaf that lies in a stack, the layer of each slice of
      its axis 0. Other leaves (embedding, head) are left out.
    """
    counts: dict[tuple[str, int], int] = {}
    periods: dict[tuple[str, int], int] = {}
    found = {}
    for name, leaf in named_leaves(tree).items():
        if match := _LAYERED.match(name):
            segment, block = (match[1], int(match[2])), int(match[3])
            found[name] = segment, block
            counts[segment] = leaf.shape[0]
            periods[segment] = max(periods.get(segment, 0), block + 1)
    first, total = {}, 0
    for segment in sorted(counts):
        first[segment] = total
        total += counts[segment] * periods[segment]
    return {
        name: first[segment] + block + periods[segment] * np.arange(counts[segment])
        for name, (segment, block) in found.items()
    }


def sum_by_layer(function: Callable[..., jax.Array], *trees: Any) -> jax.Array:
    """Adds up, for every layer, a scalar function of its parameters.

    Args:
      function: Maps one slice of a leaf of each tree to a scalar.
      *trees: Trees of the same structure.

    Returns:
      The sums, of shape (layers,), in the order of depth.

    Raises:
      ReslabError: If the tree holds no layers.

    >>> body = {"segment_0": {"block_0": {"kernel": jnp.ones((2, 3))}}}
    >>> sum_by_layer(jnp.sum, {"layers": {"body": body}, "head": jnp.ones(1)}).tolist()
    [3.0, 3.0]
    """
    numbers = layer_numbers(trees[0])
    if not numbers:
        raise ReslabError("the parameters hold no stack of layers")
    leaves = [named_leaves(tree) for tree in trees]
    sums = jnp.zeros(1 + max(int(n.max()) for n in numbers.values()))
    for name, layers in numbers.items():
        values = jax.vmap(function)(*(tree[name] for tree in leaves))
        sums = sums.at[layers].add(values.astype(sums.dtype))
    return sums
