"""Passes that end early while a model generates."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from reslab.core.errors import ReslabError
from reslab.core.types import State, Stream
from reslab.nn.stacks._layers import Layers
from reslab.nn.stacks._loops.span import unbound


def pure_pass(
    layers: Layers,
    enter: Callable[[Stream, Any], Stream],
    first: int,
    positions: jax.Array,
    segments: jax.Array | None,
    where: str,
) -> Callable[[Stream, Any, State], tuple[Stream, State]]:
    """A pass over the layers as a pure function of stream, number and state.

    Args:
      layers: The layers.
      enter: Changes the stream before a pass.
      first: Number of the first layer of the first pass.
      positions: Position of each token in its document (batch, 1).
      segments: 0 for rows without a token, or None.
      where: What it is told of.

    Raises:
      ReslabError: If a mixer keeps anything but a cache of every token, which later
        tokens can find at any depth.
    """
    check_caches(layers, where)
    core, variables = layers.clone(parent=None, name=None), dict(layers.variables)

    def one_pass(stream, number, state):
        layer = first + core.depth * number
        entered = enter(stream, number)
        return core.apply(variables, entered, layer, state, positions, segments)

    return one_pass


def check_caches(layers: Layers, where: str) -> None:
    """Refuses mixers whose state a token cannot leave at one depth for all others.

    Args:
      layers: The layers.
      where: What it is told of.

    Raises:
      ReslabError: If a mixer keeps anything but a cache of every token.
    """
    for block in layers.blocks:
        mixer = unbound(block).unbound_mixer
        if not getattr(mixer, "keeps_every_token", False):
            raise ReslabError(
                where,
                expected="mixers with a cache of every token",
                got=type(mixer).__name__,
                hint="mixer attention without a window, or exit 'none'",
            )


def is_settled(before: Stream, after: Stream, threshold: float) -> jax.Array:
    """Returns for each row whether its stream changed by less than a share of its size.

    Args:
      before: The stream before a pass.
      after: The stream after it.
      threshold: The share.
    """

    def square(tree: Stream) -> jax.Array:
        # (..., batch, 1, embed) to (batch,)
        rows = [jnp.moveaxis(leaf, -3, 0) for leaf in jax.tree.leaves(tree)]
        wide = [row.reshape(row.shape[0], -1).astype(jnp.float32) for row in rows]
        return jnp.sum(jnp.square(jnp.concatenate(wide, axis=1)), axis=1)

    change = square(jax.tree.map(jnp.subtract, after, before))
    return change < threshold**2 * square(after)
