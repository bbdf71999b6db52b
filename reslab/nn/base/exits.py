"""Exits: outputs of several depths, for a loss over all of them."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import NamedTuple

import jax


class Exits(NamedTuple):
    """Outputs of several depths.

    Attributes:
      features: What each of them would be the output (exits, batch, length, embed).
      weights: Weight of the loss of each token there (exits, batch, length).
    """

    features: jax.Array
    weights: jax.Array


class Taught(NamedTuple):
    """Outputs of several depths; the last teaches the others.

    Attributes:
      features: What each of them would be the output (exits, batch, length, embed).
      weight: Weight of the divergence of each other output from the last.
    """

    features: jax.Array
    weight: float


_found: contextvars.ContextVar[list[Exits | Taught] | None] = contextvars.ContextVar(
    "exits", default=None
)


@contextlib.contextmanager
def collecting_exits() -> Iterator[list[Exits | Taught]]:
    """Collects what the stack called inside offers."""
    found: list[Exits | Taught] = []
    token = _found.set(found)
    try:
        yield found
    finally:
        _found.reset(token)


def offer(exits: Exits | Taught) -> None:
    """Offers outputs to a loss, where the caller collects them."""
    found = _found.get()
    if found is not None:
        found.append(exits)
