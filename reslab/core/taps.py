"""Taps: how what happens inside a model is seen from outside, at no cost when off.

A part that knows something worth seeing (the weights with which it mixed earlier
layers, the load of its experts) calls `tap`. Under a watcher (`observe.probes`) the
value leaves the model in the `taps` collection; otherwise nothing uses it, and the
compiled program is the same as without the call.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax

# The collection that taps write to; loops over layers stack it along depth.
TAPS = "taps"

_site: contextvars.ContextVar[Any] = contextvars.ContextVar("site", default=None)


_watched: contextvars.ContextVar[bool] = contextvars.ContextVar(
    "watched", default=False
)


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Says that calls inside are intercepted; only the watcher calls it."""
    token = _watched.set(True)
    try:
        yield
    finally:
        _watched.reset(token)


def is_watched() -> bool:
    """Returns whether a watcher intercepts the calls of modules."""
    return _watched.get()


@contextlib.contextmanager
def at_site(site: int | jax.Array) -> Iterator[None]:
    """Says which sublayer the code inside belongs to; only the watcher calls it."""
    token = _site.set(site)
    try:
        yield
    finally:
        _site.reset(token)


def tap(module: nn.Module, name: str, value: Any) -> None:
    """Records an array for probes, with the sublayer that it belongs to.

    Args:
      module: The module that knows the value.
      name: What it is called, one name for one meaning across all variants.
      value: The array.
    """
    site = _site.get()
    if site is not None:
        module.sow(TAPS, name, {"site": jax.numpy.asarray(site), "value": value})
