"""Watches a model through the protocols of its parts, not through their classes.

A sublayer is any call `placement(stream, residual, branch, site=)`, a layer any
call `block(stream, shared, layer=)`, and the end of the stream any call
`residual.narrow(stream)`. So whatever keeps to the protocols can be watched, the
caller's own variants included, and models hold no code for it.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.taps import at_site, tap, watched

_PLACEMENT = frozenset({"stream", "residual", "branch", "site"})
_BLOCK = frozenset({"stream", "shared", "layer"})


@functools.cache
def _parameters(method: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(method).parameters)[1:]


def _named(context: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments of an intercepted call, by name."""
    method = getattr(type(context.module), context.method_name)
    return dict(zip(_parameters(method), args, strict=False)) | kwargs


def _is_call_with(context: Any, names: frozenset[str]) -> bool:
    if context.method_name != "__call__":
        return False
    return names <= set(_parameters(type(context.module).__call__))


def _is_end(context: Any) -> bool:
    if context.method_name != "narrow":
        return False
    # A residual narrows the stream and nothing else; it also widens.
    is_alone = len(_parameters(type(context.module).narrow)) == 1
    return is_alone and hasattr(context.module, "widen")


@contextlib.contextmanager
def _intercepting(
    around: Callable[[Callable[..., Any], dict[str, Any], Any], Any],
    is_meant: Callable[[Any], bool],
) -> Iterator[None]:
    def intercept(call, args, kwargs, context):
        if not is_meant(context):
            return call(*args, **kwargs)
        return around(
            lambda named: call(**named), _named(context, args, kwargs), context
        )

    with watched(), nn.intercept_methods(intercept):
        yield


class _Watched:
    """A residual whose readings and whose branch's outputs are shown to a watcher."""

    def __init__(self, residual: Any, see: Callable[[jax.Array, jax.Array], None]):
        self._residual = residual
        self._see = see

    def __getattr__(self, name: str) -> Any:
        return getattr(self._residual, name)

    def __call__(self, stream, branch, **keywords):
        def watched(reading):
            output = branch(reading)
            # Of several, the first: what the queries are made of.
            self._see(jax.tree.leaves(reading)[0], output)
            return output

        return self._residual(stream, watched, **keywords)


@contextlib.contextmanager
def watching_sublayers() -> Iterator[set[int]]:
    """Taps what every sublayer read and gave back, and the end of the stream.

    Inside, each sublayer taps `reading` (what the residual hands to it, before
    its norm) and `output` (what it returns to the residual, after its norms), each
    (batch, length, embed). The end taps `end`, and `gain`: how many times as large a
    stream is when it is narrowed as when it was widened (a sum of n streams: n).
    Each layer taps its number as `layer`.

    Yields:
      The numbers of sublayers that layers have, filled as the model is traced.
    """
    seen = 0
    counts: set[int] = set()

    def sublayer(call, named, context):
        def see(reading, output):
            tap(context.module, "reading", reading)
            tap(context.module, "output", output)

        nonlocal seen
        seen += 1
        with at_site(named["site"]):
            return call(named | {"residual": _Watched(named["residual"], see)})

    def layer(call, named, context):
        with at_site(named["layer"]):
            tap(context.module, "layer", jnp.zeros(()))
        before = seen
        after = call(named)
        counts.add(seen - before)
        return after

    def end(call, named, context):
        features = call(named)
        ones = jnp.ones((1, 1, features.shape[-1]), features.dtype)
        (stream,) = named
        gain = ones
        # A history that has just begun is no history to read.
        if not getattr(context.module, "is_history", False):
            gain = call({stream: context.module.widen(ones)})
        with at_site(0):
            tap(context.module, "end", features)
            tap(context.module, "gain", jnp.mean(gain.astype(jnp.float32)))
        return features

    with (
        _intercepting(sublayer, lambda c: _is_call_with(c, _PLACEMENT)),
        _intercepting(end, _is_end),
        _intercepting(layer, lambda c: _is_call_with(c, _BLOCK)),
    ):
        yield counts


@contextlib.contextmanager
def without_layers(is_removed: jax.Array) -> Iterator[None]:
    """Lets the stream pass by the layers for which `is_removed` (layers,) is true."""

    def layer(call, named, context):
        stream, *others = call(named)
        removed = is_removed[named["layer"]]
        kept = jax.tree.map(
            lambda before, after: jnp.where(removed, before, after),
            named["stream"],
            stream,
        )
        return kept, *others

    with _intercepting(layer, lambda c: _is_call_with(c, _BLOCK)):
        yield


@jax.custom_vjp
def _seen_backwards(stream: Any, slot: jax.Array) -> Any:
    """The stream itself; its squared gradient arrives as the gradient of `slot`."""
    return stream


def _forwards(stream, slot):
    return stream, None


def _backwards(_, gradient):
    squares = [
        jnp.sum(jnp.square(leaf.astype(jnp.float32)))
        for leaf in jax.tree.leaves(gradient)
    ]
    return gradient, functools.reduce(jnp.add, squares)


_seen_backwards.defvjp(_forwards, _backwards)


@contextlib.contextmanager
def watching_stream_gradient(slots: jax.Array, sites: jax.Array) -> Iterator[None]:
    """Makes the gradient of `slots` the squared gradient of the stream.

    The gradient of a loss by `slots[s]` then is the squared norm of its gradient by
    the stream that the sublayer at `sites[s]` reads. `slots` change nothing.

    Args:
      slots: Zeros (sublayers,), float32.
      sites: The sites of all sublayers, in order.
    """

    def sublayer(call, named, context):
        stream = _seen_backwards(
            named["stream"], slots[jnp.searchsorted(sites, named["site"])]
        )
        return call(named | {"stream": stream})

    with _intercepting(sublayer, lambda c: _is_call_with(c, _PLACEMENT)):
        yield
