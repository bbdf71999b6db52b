"""The loop that applies each layer as often as is decided when it is reached."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from reslab.core.types import Shared, Stream
from reslab.core.varying import varying_like
from reslab.nn.stacks._loops import path
from reslab.nn.stacks._loops.span import Change, Span

# (what a layer has of its own, stream) -> (times of each row (batch,), what is told)
Decide = Callable[[Any, Stream], tuple[jax.Array, Any]]
# (decision, stream before, stream after) -> stream
Mix = Callable[[Any, Stream, Stream], Stream]


def run(
    decide: Decide,
    own: Any,
    most: int,
    spans: Sequence[Span],
    stream: Stream,
    shared: Shared,
    *,
    mix: Mix | None = None,
) -> tuple[Stream, list[Change], Any]:
    """Applies the layers in order, each row of the batch as often as it decides.

    An application that no row wants is not computed (`jax.lax.cond`); one that some
    rows want is computed for all, and the others keep their stream. Caches have an axis
    of applications after the axis of layers: a repeated layer finds the keys of the
    same application. A row must decide alike at every call with one cache.

    Args:
      decide: How often each row applies a layer.
      own: A tree of what layers have of their own for it, stacked over all layers.
      most: Most applications of a layer.
      spans: Parts of one block each.
      stream: The stream.
      shared: The depth memory.
      mix: Joins the stream before and after the layer instead, applied once, by what
        `decide` tells.

    Returns:
      The stream, the changes of each span, and what was told, stacked over all layers.

    Raises:
      ReslabError: If the spans have what no path can carry.
    """
    path.check(spans, stream)
    changes, told, first = [], [], 0
    for span in spans:
        rows = jax.tree.map(lambda a, f=first, n=span.count: a[f : f + n], own)
        first += span.count
        body = functools.partial(_layer, span, decide, most, mix, shared)
        stream = varying_like(stream, stream, shared)
        stream, (change, tells) = jax.lax.scan(
            body,
            stream,
            (span.xs, rows),
            length=span.count,
            unroll=span.count if span.is_unrolled else 1,
        )
        changes.append(change)
        told.append(tells)
    return stream, changes, jax.tree.map(lambda *a: jnp.concatenate(a), *told)


def _layer(span, decide, most, mix, shared, stream, scanned):
    """Applies one layer; the body of a scan."""
    (variables, (layer, state)), row = scanned
    step, found = span.remembered(), []
    times, tells = decide(row, stream)

    def apply(stream, at):
        after, _, change = step(variables, stream, shared, (layer, at))
        return after, change

    def states(number):
        return jax.tree.map(lambda a: a[number], state)

    if mix is not None:
        after, change = apply(stream, states(0))
        return mix(tells, stream, after), (_joined([change]), tells)
    for number in range(most):
        wants = times > number
        after, change = _if_any(wants, apply, stream, states(number))
        stream = _chosen(wants, after, stream)
        found.append(change)
    return stream, (_joined(found), tells)


def _if_any(wants: jax.Array, apply: Any, stream: Stream, at: Any) -> Any:
    """Applies a layer if a row wants it; else nothing is computed, nothing changes."""
    shapes = jax.eval_shape(apply, stream, at)[1].collections

    def skip(stream, at):
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return stream, Change(zeros, at)

    return jax.lax.cond(jnp.any(wants), apply, skip, stream, at)


def _chosen(wants: jax.Array, after: Stream, before: Stream) -> Stream:
    """The stream after the layer in rows that want it, the one before elsewhere."""
    rows = wants[:, None, None]
    return jax.tree.map(lambda new, old: jnp.where(rows, new, old), after, before)


def _joined(found: Sequence[Change]) -> Change:
    """The changes of all applications of one layer: sums, and states stacked."""
    collections = [change.collections for change in found]
    states = [change.state for change in found]
    return Change(
        jax.tree.map(lambda *a: sum(a[1:], a[0]), *collections),
        None if states[0] is None else jax.tree.map(lambda *a: jnp.stack(a), *states),
    )
