"""Recurrences over rows whose tokens the devices of a mesh divide among them.

Each device runs over its own tokens and passes on what they did to the state; nothing
of the size of the tokens is gathered.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from reslab.core.types import SEQUENCE_AXIS

State = TypeVar("State")


def is_divided(length: int) -> bool:
    """Returns whether the mesh in context divides rows of `length` tokens evenly."""
    parts = jax.sharding.get_abstract_mesh().shape.get(SEQUENCE_AXIS, 1)
    return parts > 1 and length % parts == 0


def over_tokens(local: Callable[..., Any]) -> Callable[..., Any]:
    """Maps a function of one device's tokens over the mesh in context.

    Other axes of the mesh are left to the compiler.

    Args:
      local: Takes a tree of arrays of tokens (batch, length, ...) and a tree of others,
        such as a state; returns an output (batch, length, ...), and a state that is
        the same on all devices of a row.

    Returns:
      The function of whole arrays.
    """
    tokens = PartitionSpec(None, SEQUENCE_AXIS)
    return jax.shard_map(
        local,
        in_specs=(tokens, PartitionSpec()),
        out_specs=(tokens, PartitionSpec()),
        axis_names={SEQUENCE_AXIS},
    )


def before(
    compose: Callable[[State, State], State], own: State, nothing: State
) -> State:
    """Composes what all devices before this one did to the state, in their order.

    Args:
      compose: What one did, and then another one.
      own: What this device does.
      nothing: What leaves a state as it is.
    """
    count = jax.lax.axis_size(SEQUENCE_AXIS)
    place = jax.lax.axis_index(SEQUENCE_AXIS)

    def from_left(tree, distance):
        pairs = [(n, n + distance) for n in range(count - distance)]
        move = functools.partial(jax.lax.ppermute, axis_name=SEQUENCE_AXIS, perm=pairs)
        return jax.tree.map(move, tree)

    def chosen(is_first, one, other):
        return jax.tree.map(lambda a, b: jnp.where(is_first, a, b), one, other)

    distance = 1
    while distance < count:
        joined = compose(from_left(own, distance), own)
        own = chosen(place >= distance, joined, own)
        distance *= 2
    return chosen(place == 0, nothing, from_left(own, 1))


def of_last(tree: State) -> State:
    """The arrays of the last device, on all of them."""
    is_last = jax.lax.axis_index(SEQUENCE_AXIS) == jax.lax.axis_size(SEQUENCE_AXIS) - 1
    kept = jax.tree.map(lambda a: jnp.where(is_last, a, 0), tree)
    return jax.lax.psum(kept, SEQUENCE_AXIS)
