"""Positions of layers in a parameter tree."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reslab.core.errors import ReslabError
from reslab.core.trees import named_leaves, nested_leaves

# Stacks of layers are stored as scans of periods of blocks: the leaf
# `<stack>/segment_i/block_j/...` holds, along axis 0, the layers number
# j, j + period, j + 2 period, ... of span i.
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
            span, block = (match[1], int(match[2])), int(match[3])
            found[name] = span, block
            counts[span] = leaf.shape[0]
            periods[span] = max(periods.get(span, 0), block + 1)
    first, total = {}, 0
    for span in sorted(counts):
        first[span] = total
        total += counts[span] * periods[span]
    return {
        name: first[span] + block + periods[span] * np.arange(counts[span])
        for name, (span, block) in found.items()
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


def block_layers(params: Any) -> dict[str, np.ndarray]:
    """Which layers lie in each block of each scan.

    Args:
      params: Parameters, or their shapes.

    Returns:
      For every `<stack>/segment_i/block_j`, the layer of each slice.
    """
    return {
        match[0].rstrip("/"): numbers
        for name, numbers in layer_numbers(params).items()
        if (match := _LAYERED.match(name))
    }


def separate_layers(
    tree: Any,
    blocks: Mapping[str, np.ndarray],
    is_kept: Callable[[int, str], bool] = lambda layer, name: True,
) -> dict[str, Any]:
    """Takes the layers of a stack apart, so that each is a span of its own.

    Args:
      tree: Parameters, or another collection.
      blocks: What `block_layers` says of the parameters.
      is_kept: Whether to keep a leaf of a layer, by the layer and the leaf's new name.

    Returns:
      A tree of leaves `<stack>/segment_<layer>/block_0/...` with one slice each, and
      those outside of the stack as they were.
    """
    leaves = {}
    for name, leaf in named_leaves(tree).items():
        match = _LAYERED.match(name)
        if match is None:
            leaves[name] = leaf
            continue
        for index, layer in enumerate(blocks[match[0].rstrip("/")]):
            new = f"{match[1]}segment_{layer}/block_0/{name[match.end() :]}"
            if is_kept(int(layer), new):
                leaves[new] = leaf[index : index + 1]
    return nested_leaves(leaves)


def arrange_layers(
    tree: Any,
    blocks: Mapping[str, np.ndarray],
    like: Any,
    like_blocks: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """Lays the layers of a stack out as another tree has them.

    Args:
      tree: Parameters, or another collection.
      blocks: What `block_layers` says of the parameters.
      like: The same collection, or its shapes, of a model of the same layers whose
        scans have other periods.
      like_blocks: What `block_layers` says of that model's parameters.

    Returns:
      A tree like `like`, without the leaves for which `tree` does not have every
      layer, and with those of `tree` that have no place there, under their old names.
    """
    given = named_leaves(tree)
    # The last two parts of a block's name identify its layers.
    places = {
        (block.rsplit("segment_", 1)[0], int(layer)): (block, index)
        for block, layers in blocks.items()
        for index, layer in enumerate(layers)
    }
    leaves, used = {}, set()
    for name in named_leaves(like):
        match = _LAYERED.match(name)
        if match is None:
            continue
        wanted = []
        for layer in like_blocks[match[0].rstrip("/")]:
            block, index = places[match[1], int(layer)]
            wanted.append((f"{block}/{name[match.end() :]}", index))
        if all(old in given for old, _ in wanted):
            rows = [np.asarray(given[old])[index] for old, index in wanted]
            leaves[name] = np.stack(rows)
            used |= {old for old, _ in wanted}
    rest = {
        name: leaf for name, leaf in given.items() if name not in used | set(leaves)
    }
    return nested_leaves({**rest, **leaves})
