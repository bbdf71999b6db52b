"""Kernels of one shape, taken together: dealt out to devices, whole."""

import collections
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from reslab.core.layout import Layout
from reslab.core.types import MESH_AXES, SEQUENCE_AXIS
from reslab.ops import spectra
from reslab.optim.base.leaves import Layouts, map_leaves, resolve


def by_shape(
    function: Callable[..., jax.Array], tree: Any, layouts: Layouts, *others: Any
) -> Any:
    """Calls a function once for all kernels of one shape, transposed ones included.

    Where parameters are split over a mesh (as `jax.set_mesh` says), whole matrices are
    dealt out to its devices: weights change hands by an all-to-all of the shares, and
    every matrix lies on one device. Devices that only replicate the parameters
    (`data`) repeat the work.

    Args:
      function: Maps matrices (stacked, m, n), m <= n, and an array (stacked,) of each
        other tree to an array (stacked, ...), each matrix independently.
      tree: Kernels; all must be matrices by their layouts.
      layouts: A tree of layouts.
      *others: Trees with an entry for each stacked matrix.

    Returns:
      A tree of what was made of each leaf's matrices, (stacked, ...).
    """
    layouts = resolve(layouts, tree)
    views, structure = jax.tree.flatten(map_leaves(wide_view, layouts, tree))
    entries = [jax.tree.leaves(other) for other in others]
    buckets: dict[Any, list[int]] = collections.defaultdict(list)
    for index, matrices in enumerate(views):
        buckets[matrices.shape[1:]].append(index)
    results: list[Any] = [None] * len(views)
    shares = math.prod(split_axes().values())
    for indices in buckets.values():
        joined = [jnp.concatenate([views[i] for i in indices])]
        for leaves in entries:
            joined.append(jnp.concatenate([leaves[i].reshape(-1) for i in indices]))
        if shares > 1:
            padding = -joined[0].shape[0] % shares
            joined = [
                jnp.pad(x, [(0, padding), *[(0, 0)] * (x.ndim - 1)]) for x in joined
            ]
            joined[0] = jax.lax.with_sharding_constraint(
                joined[0], PartitionSpec(tuple(split_axes()), None, None)
            )
        found = function(*joined)
        begin = 0
        for i in indices:
            results[i] = found[begin : begin + views[i].shape[0]]
            begin += views[i].shape[0]
    return jax.tree.unflatten(structure, results)


def singular_values(tree: Any, layouts: Layouts) -> Any:
    """The singular values of all kernels of a tree, (stacked, m) each, descending.

    One decomposition for each shape; each device decomposes its own matrices.
    """

    def together(matrices):
        axes = tuple(split_axes())
        if not axes:
            return spectra.singular_values(matrices)
        spec = PartitionSpec(axes)
        return jax.shard_map(
            spectra.singular_values, in_specs=spec, out_specs=spec, check_vma=False
        )(matrices)

    return by_shape(together, tree, layouts)


def wide_view(layout: Layout, x: jax.Array) -> jax.Array:
    """A kernel as matrices that are no taller than wide."""
    matrices = layout.as_matrices(x)
    return jnp.swapaxes(matrices, 1, 2) if is_turned(layout, x) else matrices


def is_turned(layout: Layout, x: Any) -> bool:
    """Returns whether a kernel is transposed to be wide."""
    rows = math.prod(x.shape[axis] for axis in layout.inputs)
    columns = math.prod(x.shape[axis] for axis in layout.outputs)
    if rows != columns:
        return rows > columns
    # Square kernels are split along the same axis of the stack if all begin with the
    # stream's features.
    return bool(layout.names) and layout.names[layout.inputs[0]] != "embed"


def split_axes() -> dict[str, int]:
    """Axes of the current mesh over which parameters are split, and their sizes."""
    mesh = jax.sharding.get_abstract_mesh()
    sizes = {} if mesh.empty else dict(mesh.shape)
    replicating = (MESH_AXES[0], SEQUENCE_AXIS)
    return {a: size for a, size in sizes.items() if size > 1 and a not in replicating}
