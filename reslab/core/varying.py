"""Values inside `jax.shard_map` that differ from device to device."""

from typing import Any, TypeVar

import jax

T = TypeVar("T")


def varying_like(tree: T, *others: Any) -> T:
    """Marks arrays as different on each device, along the mesh axes where others are.

    What a loop carries must be so marked from the start, where `jax.shard_map` checks
    what differs; outside of it nothing is done.

    Args:
      tree: Arrays, such as the zeros that a loop starts from.
      *others: Arrays that the loop adds to them.
    """
    axes = varying_axes(others)

    def mark(leaf: Any) -> Any:
        missing = tuple(sorted(axes - _axes(leaf)))
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(mark, tree)


def varying_axes(tree: Any) -> frozenset[str]:
    """Returns the mesh axes along which some array of a tree differs."""
    return frozenset[str]().union(*map(_axes, jax.tree.leaves(tree)))


def shape_of(leaf: Any, shape: tuple[int, ...] | None = None) -> jax.ShapeDtypeStruct:
    """Returns shape and dtype of an array, and the mesh axes along which it differs.

    Args:
      leaf: The array.
      shape: Another shape to return instead of its own.
    """
    kind = jax.typeof(leaf)
    shape = kind.shape if shape is None else shape
    if not _axes(leaf):
        return jax.ShapeDtypeStruct(shape, kind.dtype)
    mesh = jax.sharding.NamedSharding(kind.sharding.mesh, jax.P())
    return jax.ShapeDtypeStruct(
        shape, kind.dtype, sharding=mesh, manual_axis_type=kind.manual_axis_type
    )


def _axes(leaf: Any) -> frozenset[str]:
    return jax.typeof(leaf).manual_axis_type.varying
