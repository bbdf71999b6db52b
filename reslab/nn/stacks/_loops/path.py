"""The loop along a path: any sequence of layers, each as often as it is named."""

import dataclasses
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from reslab.core.errors import ReslabError
from reslab.core.model_state import BATCH_STATS, GRADIENT_STATS
from reslab.core.routes import Route
from reslab.core.types import Shared, Stream
from reslab.nn.base.history import History
from reslab.nn.stacks._loops import scan
from reslab.nn.stacks._loops.span import Change, Span


def refusal(spans: Sequence[Span], stream: Stream) -> str:
    """Names what of the spans this loop cannot carry; "" is nothing."""
    if isinstance(stream, History):
        return "a residual that reads what every earlier layer wrote"
    if any(span.writes for span in spans):
        return "a depth memory, which belongs to one order of layers"
    if any(
        collection in span.mutable and collection in span.collections
        for span in spans
        for collection in (BATCH_STATS, GRADIENT_STATS)
    ):
        return "statistics of a model that trains"
    return ""


def run(
    spans: Sequence[Span], stream: Stream, shared: Shared
) -> tuple[Stream, Shared, list[Change]]:
    """Applies the parts of a path in turn.

    Args:
      spans: The parts, each of one layer's block.
      stream: The stream.
      shared: The depth memory.

    Returns:
      The stream, the depth memory, and the change of each part, stacked.

    Raises:
      ReslabError: If the spans have what this loop cannot carry.
    """
    check(spans, stream)
    return scan.run(spans, stream, shared)


def check(spans: Sequence[Span], stream: Stream) -> None:
    """Raises if the spans have what no path can carry."""
    if reason := refusal(spans, stream):
        raise ReslabError(
            "a path through the layers",
            expected="layers that may be left out, repeated and reordered",
            got=reason,
            hint="stack uniform",
        )


def run_route(
    route: Route, spans: Sequence[Span], stream: Stream, shared: Shared
) -> tuple[Stream, list[Change]]:
    """Applies layers along a route that is an array: one program for every route.

    Only the layers of the route are computed. There is no gradient, no cache, and
    nothing that layers write is kept.

    Args:
      route: The layers.
      spans: All layers of the stack, in their order.
      stream: The stream.
      shared: The depth memory.

    Raises:
      ReslabError: If the spans have what no path can carry.
    """
    check(spans, stream)
    kinds = [(i, b) for i, span in enumerate(spans) for b in range(len(span.blocks))]
    home = [
        (kinds.index((i, block)), period)
        for i, span in enumerate(spans)
        for period in range(span.count)
        for block in range(len(span.blocks))
    ]
    kind_of, period_of = jnp.asarray(home, jnp.int32).T

    def branch(index, block):
        one = part(spans[index], block, range(spans[index].count))

        def apply(stream, period):
            variables, x = jax.tree.map(lambda leaf: leaf[period], one.xs)
            return one.step(variables, stream, shared, x)[0]

        return apply

    branches = [branch(*kind) for kind in kinds]

    def body(index, stream):
        layer = route.layers[index]
        return jax.lax.switch(kind_of[layer], branches, stream, period_of[layer])

    return jax.lax.fori_loop(0, route.count, body, stream), []


def parts(
    plan: Sequence[tuple[Sequence, int]], order: Sequence[int]
) -> list[tuple[int, tuple[int, tuple[int, ...]]]]:
    """Cuts a path into runs of layers that one scan can apply.

    Args:
      plan: Blocks of a period and number of periods, of each span of the stack.
      order: Numbers of the layers along the path.

    Returns:
      Of each run its span, and the block and the periods that `part` takes.

    >>> parts([("a", 3), ("bc", 2)], (0, 2, 2, 3, 5, 1))
    [(0, (0, (0, 2, 2))), (1, (0, (0, 1))), (0, (0, (1,)))]
    """
    home = [
        (span, block, period)
        for span, (blocks, count) in enumerate(plan)
        for period in range(count)
        for block in range(len(blocks))
    ]
    runs = itertools.groupby((home[layer] for layer in order), lambda at: at[:2])
    return [
        (span, (block, tuple(period for *_, period in run)))
        for (span, block), run in runs
    ]


def part(span: Span, block: int, periods: Sequence[int]) -> Span:
    """One block of a span's period, in some of its periods, in any order."""
    return dataclasses.replace(
        span,
        blocks=(span.blocks[block],),
        collections={
            name: {"block_0": tree[f"block_{block}"]}
            for name, tree in span.collections.items()
            if f"block_{block}" in tree
        },
        layers=jnp.asarray(span.layers) + block,
    ).rows(jnp.asarray(periods))
