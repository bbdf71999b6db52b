"""Taps: how activations are seen and changed from outside, at no cost when off.

A part that knows something worth seeing (the weights with which it mixed earlier
layers, the load of its experts) calls `tap`. Under a watcher the value leaves the
model in the `taps` collection. An activation that an intervention may replace goes
through `editable`. Otherwise the compiled program is the same as without the calls.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# The collection that taps write to; loops over layers stack it along depth.
TAPS = "taps"


@dataclasses.dataclass(frozen=True)
class Here:
    """The sublayer that runs; its numbers may be traced.

    Attributes:
      site: Its number among all sublayers that are applied.
      layer: Number of its layer among those with parameters of their own.
      pass_index: Number of the pass of a looped stack.
      sublayer: Its number in the layer.
      layers: Number of layers with parameters of their own; 0 is unknown.
      passes: Number of passes.
    """

    site: int | jax.Array
    layer: int | jax.Array = 0
    pass_index: int | jax.Array = 0
    sublayer: int = 0
    layers: int = 0
    passes: int = 1


# Returns an activation, possibly changed: (where, name, value) -> value.
Change = Callable[[Here, str, jax.Array], jax.Array]

_here: contextvars.ContextVar[Here | None] = contextvars.ContextVar(
    "here", default=None
)
_changes: contextvars.ContextVar[tuple[Change, ...]] = contextvars.ContextVar(
    "changes", default=()
)
_recorded: contextvars.ContextVar[frozenset[str]] = contextvars.ContextVar(
    "recorded", default=frozenset()
)
_watched: contextvars.ContextVar[bool] = contextvars.ContextVar(
    "watched", default=False
)


@contextlib.contextmanager
def _setting(variable: contextvars.ContextVar[Any], value: Any) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def watched() -> contextlib.AbstractContextManager[None]:
    """Says that calls inside are intercepted; only the watcher calls it."""
    return _setting(_watched, True)


def is_watched() -> bool:
    """Returns whether a watcher intercepts the calls of modules."""
    return _watched.get()


def at(here: Here) -> contextlib.AbstractContextManager[None]:
    """Says which sublayer the code inside belongs to; only the watcher calls it."""
    return _setting(_here, here)


def changing(change: Change) -> contextlib.AbstractContextManager[None]:
    """Passes every activation inside through a function, after those around it."""
    return _setting(_changes, (*_changes.get(), change))


def recording(names: Iterable[str]) -> contextlib.AbstractContextManager[None]:
    """Shows the activations of these names to the watcher as well."""
    return _setting(_recorded, frozenset(names))


def is_recorded(name: str) -> bool:
    """Returns whether activations of a name are shown to the watcher."""
    return name in _recorded.get()


def is_changing() -> bool:
    """Returns whether an intervention may change activations."""
    return bool(_changes.get())


def changed(name: str, value: jax.Array) -> jax.Array:
    """Returns an activation as interventions want it.

    Args:
      name: What it is called.
      value: What the model computed.
    """
    here = _here.get()
    if here is not None:
        for change in _changes.get():
            value = change(here, name, value)
    return value


def tap(module: nn.Module, name: str, value: Any) -> None:
    """Records an array for probes, with the sublayer that it belongs to.

    Args:
      module: The module that knows the value.
      name: What it is called, one name for one meaning across all variants.
      value: The array.
    """
    here = _here.get()
    if here is not None:
        module.sow(TAPS, name, {"site": jnp.asarray(here.site), "value": value})


def editable(module: nn.Module, name: str, value: jax.Array) -> jax.Array:
    """Returns an activation as interventions want it, and shows it where asked.

    Unlike what `tap` shows, it may be large, and is recorded by name alone.

    Args:
      module: The module that computed it.
      name: What it is called, one name for one meaning across all variants.
      value: The activation.

    Returns:
      The activation to go on with.
    """
    value = changed(name, value)
    if is_recorded(name):
        tap(module, name, value)
    return value
