"""Watches a model through the families of its parts, not through their classes.

A sublayer is any call of a placement, a layer any call of a block, and the end of the
stream what a stack returns, whatever class they are of (`registry.family_of`). So
parts of one's own can be watched as well, and models hold no code for it. A block
inside a block is no layer of its own, nor a placement inside a placement a sublayer.
"""

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.taps import Here, at, changed, is_changing, tap, watched
from reslab.core.trees import named_leaves


class CannotAnswer(ReslabError):
    """The model has no part that a probe asks about."""


@functools.cache
def _parameters(method: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(method).parameters)[1:]


@contextlib.contextmanager
def _intercepting(
    family: str, around: Callable[..., Any], method: str = "__call__"
) -> Iterator[None]:
    """Goes around the outermost calls of a family's parts.

    Args:
      family: The family.
      around: Called with the call, a function of its named arguments, with these
        arguments, and with the module.
      method: The method.
    """
    is_inside = False

    def intercept(call, args, kwargs, context):
        nonlocal is_inside
        kind = type(context.module)
        is_meant = context.method_name == method and not is_inside
        if not is_meant or registry.family_of(kind) != family:
            return call(*args, **kwargs)
        names = _parameters(getattr(kind, method))
        named = dict(zip(names, args, strict=False)) | kwargs
        is_inside = True
        try:
            return around(lambda named: call(**named), named, context.module)
        finally:
            is_inside = False

    with watched(), nn.intercept_methods(intercept):
        yield


class _Watched:
    """A residual whose readings and whose branch's outputs go through taps."""

    def __init__(self, residual: Any, placement: nn.Module):
        self._residual = residual
        self._placement = placement

    def __getattr__(self, name: str) -> Any:
        return getattr(self._residual, name)

    def __call__(self, stream, branch, **keywords):
        def tapped(reading):
            # The first of several inputs: the one that queries are made from.
            first, *others = jax.tree.leaves(reading)
            first = changed("reading", first)
            tap(self._placement, "reading", first)
            structure = jax.tree.structure(reading)
            output = branch(jax.tree.unflatten(structure, [first, *others]))
            output = changed("output", output)
            tap(self._placement, "output", output)
            return output

        return self._residual(stream, tapped, **keywords)


@contextlib.contextmanager
def watching_sublayers() -> Iterator[set[int]]:
    """Taps what every sublayer read and gave back, and the end of the stream.

    Inside, each sublayer taps `reading` (what the residual hands to it, before
    its norm) and `output` (what it returns to the residual, after its norms), each
    (batch, length, embed). The end taps `end`, and each narrowing of the stream
    `gain`: how many times as large it is as when it was widened (a sum of n streams:
    n). Each layer taps its number as `layer`. The stream that a sublayer is given is
    not tapped, but may be changed as `stream`.

    Yields:
      The numbers of sublayers that layers have, filled as the model is traced.
    """
    counts: set[int] = set()
    here = Here(0)
    seen = 0

    def sublayer(call, named, placement):
        nonlocal seen
        own = dataclasses.replace(here, site=named["site"], sublayer=seen)
        seen += 1
        with at(own):
            return call(
                named
                | {
                    "stream": _changed_stream(named["stream"], named["residual"]),
                    "residual": _Watched(named["residual"], placement),
                }
            )

    def layer(call, named, block):
        nonlocal here, seen
        here, seen = _of_layer(named["layer"], block), 0
        with at(Here(named["layer"])):
            tap(block, "layer", jnp.zeros(()))
            after = call(named)
        counts.add(seen)
        return after

    def narrowed(call, named, residual):
        features = call(named)
        gain = jnp.ones((1, 1, features.shape[-1]), features.dtype)
        # A history that has just begun has no earlier sources.
        if not getattr(residual, "is_history", False):
            (stream,) = named
            gain = call({stream: residual.widen(gain)})
        with at(Here(0)):
            tap(residual, "gain", jnp.mean(gain.astype(jnp.float32)))
        return features

    def end(call, named, stack):
        if getattr(stack, "has_repeats", False):
            raise CannotAnswer(
                "activations by layer",
                expected="a path that names every layer once",
                got=str(stack.layers),
            )
        features, state = call(named)
        with at(Here(0)):
            features = changed("end", features)
            tap(stack, "end", features)
        return features, state

    with (
        _intercepting("placements", sublayer),
        _intercepting("residuals", narrowed, "narrow"),
        _intercepting("blocks", layer),
        _intercepting("stacks", end),
    ):
        yield counts


def _of_layer(applied: int | jax.Array, block: Any) -> Here:
    """The first sublayer of a layer, by its number among those applied."""
    context = getattr(block, "context", None)
    if context is None:
        return Here(0, applied)
    layer, pass_index = context.layer_and_pass(applied)
    return Here(0, layer, pass_index, layers=context.layers, passes=context.passes)


def _changed_stream(stream: Any, residual: Any) -> Any:
    """Applies interventions to the stream, as (streams, batch, length, embed)."""
    leaves, structure = jax.tree.flatten(stream)
    # The sources of a history are written once.
    if not is_changing() or getattr(residual, "is_history", False):
        return stream
    return jax.tree.unflatten(structure, [*changed("stream", jnp.stack(leaves))])


@contextlib.contextmanager
def without_layers(is_removed: jax.Array) -> Iterator[None]:
    """Lets the stream pass by the layers for which `is_removed` (layers,) is true."""

    def layer(call, named, block):
        del block
        stream, *others = call(named)
        removed = is_removed[named["layer"]]
        kept = jax.tree.map(
            lambda before, after: jnp.where(removed, before, after),
            named["stream"],
            stream,
        )
        return kept, *others

    with _intercepting("blocks", layer):
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
    """Makes the gradient of `slots` the squared norm of the stream's gradient.

    The gradient of a loss by `slots[s]` then is the squared norm of its gradient by
    the stream that the sublayer at `sites[s]` reads. `slots` change nothing.

    Args:
      slots: Zeros (sublayers,), float32.
      sites: The sites of all sublayers, in order.
    """

    def sublayer(call, named, placement):
        del placement
        stream = _seen_backwards(
            named["stream"], slots[jnp.searchsorted(sites, named["site"])]
        )
        return call(named | {"stream": stream})

    with _intercepting("placements", sublayer):
        yield


def tapped(taps: Any) -> dict[str, list[tuple[jax.Array, jax.Array]]]:
    """The sites and values in a `taps` collection, by name of the activation."""
    leaves = named_leaves(taps)
    found: dict[str, list[tuple[jax.Array, jax.Array]]] = {}
    for path, leaf in leaves.items():
        # .../<module>/<name>/<index of the call>/{site, value}
        *_, name, _, kind = path.split("/")
        if kind == "site":
            value = leaves[path.removesuffix("site") + "value"]
            found.setdefault(name, []).append((leaf, value))
    return found


def by_site(name: str, pairs: list[tuple[jax.Array, jax.Array]]) -> jax.Array:
    """Stacks values (loops..., *shape) in the order of their sites (loops...).

    Raises:
      CannotAnswer: If sublayers differ in the shape of the value.
    """
    shapes = {value.shape[site.ndim :] for site, value in pairs}
    if len(shapes) > 1:
        raise CannotAnswer(
            f"{name} of every sublayer",
            expected="values of one shape",
            got=" and ".join(str(shape) for shape in sorted(shapes)),
        )
    sites = jnp.concatenate([site.reshape(-1) for site, _ in pairs])
    values = jnp.concatenate(
        [value.reshape(-1, *value.shape[site.ndim :]) for site, value in pairs]
    )
    return values[jnp.argsort(sites)]
