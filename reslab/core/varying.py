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
    axes = frozenset[str]().union(*map(_axes, jax.tree.leaves(others)))

    def mark(leaf: Any) -> Any:
        missing = tuple(sorted(axes - _axes(leaf)))
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(mark, tree)


def _axes(leaf: Any) -> frozenset[str]:
    return jax.typeof(leaf).manual_axis_type.varying
