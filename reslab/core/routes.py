"""Routes through layers: given as arrays, or decided by a model and watched."""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import jax


class Route(NamedTuple):
    """Layers to apply, in order.

    Attributes:
      layers: Their numbers (most,); those from `count` on are not read.
      count: How many of them are applied, a scalar.
    """

    layers: jax.Array
    count: jax.Array


@dataclasses.dataclass
class Decisions:
    """Decisions of a model with routers, as often as each layer is applied.

    Attributes:
      taught: Decisions to take instead of its own (batch, layers), or None.
      times: The decisions taken (batch, layers).
      scores: Logits of the routers (batch, layers, choices), where they have them.
    """

    taught: jax.Array | None = None
    times: jax.Array | None = None
    scores: jax.Array | None = None


_route: contextvars.ContextVar[Route | None] = contextvars.ContextVar(
    "route", default=None
)
_decisions: contextvars.ContextVar[Decisions | None] = contextvars.ContextVar(
    "decisions", default=None
)


@contextlib.contextmanager
def routing(route: Route) -> Iterator[None]:
    """Gives a route to a stack `path` that is called inside: one program for all.

    Args:
      route: The route, of traced arrays.
    """
    token = _route.set(route)
    try:
        yield
    finally:
        _route.reset(token)


def given_route() -> Route | None:
    """Returns the route that is given here, or None."""
    return _route.get()


@contextlib.contextmanager
def watching(taught: jax.Array | None = None) -> Iterator[Decisions]:
    """Collects the decisions of the routers of a model that is called inside.

    Args:
      taught: Decisions to take instead of its own (batch, layers), or None.

    Yields:
      The decisions, which have values after the call.
    """
    found = Decisions(taught)
    token = _decisions.set(found)
    try:
        yield found
    finally:
        _decisions.reset(token)


def watched() -> Decisions | None:
    """Returns what collects decisions here, or None."""
    return _decisions.get()
