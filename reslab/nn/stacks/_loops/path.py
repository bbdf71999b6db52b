"""The loop along a path: any sequence of layers, each as often as it is named."""

import dataclasses
import itertools
from collections.abc import Sequence

import jax.numpy as jnp

from reslab.core.errors import ReslabError
from reslab.core.model_state import BATCH_STATS, GRADIENT_STATS
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
    if reason := refusal(spans, stream):
        raise ReslabError(
            "a path through the layers",
            expected="layers that may be left out, repeated and reordered",
            got=reason,
            hint="stack uniform",
        )
    return scan.run(spans, stream, shared)


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
