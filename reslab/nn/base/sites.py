"""Sites: how sublayers are numbered over all layers that are applied.

Blocks may have any number of sublayers, and a pattern of blocks may mix them. A table
of sites holds the first site of every layer applied, and one past the last. Without
a table, all layers are assumed alike.
"""

import itertools
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp

from reslab.core import registry
from reslab.core.errors import ReslabError

# Number of sublayers of blocks that do not declare one.
USUAL = 2
# Tracing more layers would take too long.
DEEPEST = 2**14


def table(sublayers: Iterable[int]) -> tuple[int, ...]:
    """The table of sites of layers with these numbers of sublayers.

    >>> table([2, 3, 1])
    (0, 2, 5, 6)
    """
    return (0, *itertools.accumulate(sublayers))


def of_model(
    stack: registry.Spec, blocks: Sequence[registry.Spec], depth: int
) -> tuple[int, ...]:
    """The table of a model: its layers in every pass of its stack.

    Args:
      stack: Spec of the stack.
      blocks: Specs of the blocks, tiled over depth.
      depth: Layers with parameters of their own.

    Raises:
      ReslabError: If they are too many to be traced.
    """
    route = route_of(stack, depth)
    made = [registry.unbound("blocks", spec) for spec in blocks]
    counts = [getattr(block, "sublayers", USUAL) for block in made]
    if max(counts) > DEEPEST:
        raise ReslabError(
            "model.block",
            expected=f"at most {DEEPEST:,} sublayers in a layer",
            got=f"{max(counts):,}",
        )
    laid = registry.unbound("stacks", stack, blocks=(), depth=depth)
    added = getattr(laid, "added_sublayers", lambda layer: 0)
    return table(counts[layer % len(counts)] + added(layer) for layer in route)


def route_of(stack: registry.Spec, depth: int) -> tuple[int, ...]:
    """Numbers of the layers that a stack applies, in order.

    A stack says so in `route`; without one, all layers are applied `passes` times.

    Args:
      stack: Spec of the stack.
      depth: Layers with parameters of their own.

    Raises:
      ReslabError: If they are too many to be traced.
    """
    made = registry.unbound("stacks", stack, blocks=(), depth=depth)
    if made.passes * depth > DEEPEST:
        raise ReslabError(
            "model.depth",
            expected=f"at most {DEEPEST:,} layers, in all passes of the stack",
            got=f"{made.passes * depth:,}",
        )
    return getattr(made, "route", made.passes * tuple(range(depth)))


def count(sites: Sequence[int], depth: int) -> int:
    """Number of sublayers applied; the usual two in each of `depth` layers if unknown.

    >>> count((0, 2, 5, 6), 3), count((), 3)
    (6, 6)
    """
    return sites[-1] if sites else USUAL * depth


def first_of(
    layer: int | jax.Array, sites: Sequence[int], sublayers: int
) -> int | jax.Array:
    """First site of a layer, which may be traced.

    Args:
      layer: Index of the layer among those applied.
      sites: The table, or ().
      sublayers: Sublayers of every layer, where there is no table.
    """
    if not sites:
        return sublayers * layer
    return at(sites, layer)


def at(table: Sequence[int], site: int | jax.Array) -> int | jax.Array:
    """Looks a site, or a layer, up in a table; a number for a number.

    >>> at((0, 2, 5, 6), 2)
    5
    """
    if isinstance(site, int):
        return table[site]
    dtype = bool if isinstance(table[0], bool) else jnp.int32
    return jnp.asarray(table, dtype)[site]


def layer_of(site: int | jax.Array, sites: Sequence[int], sublayers: int) -> jax.Array:
    """Index of the layer that a site belongs to; the inverse of `first_of`."""
    if not sites:
        return jnp.asarray(site) // sublayers
    starts = jnp.asarray(sites, jnp.int32)
    return jnp.searchsorted(starts, jnp.asarray(site, jnp.int32), side="right") - 1
