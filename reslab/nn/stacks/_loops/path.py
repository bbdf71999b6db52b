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
from reslab.nn.stacks._loops.segment import Change, Segment


def refusal(segments: Sequence[Segment], stream: Stream) -> str:
    """Names what of the segments this loop cannot carry; "" is nothing."""
    if isinstance(stream, History):
        return "a residual that reads what every earlier layer wrote"
    if any(segment.writes for segment in segments):
        return "a depth memory, which belongs to one order of layers"
    if any(
        collection in segment.mutable and collection in segment.collections
        for segment in segments
        for collection in (BATCH_STATS, GRADIENT_STATS)
    ):
        return "statistics of a model that trains"
    return ""


def run(
    segments: Sequence[Segment], stream: Stream, shared: Shared
) -> tuple[Stream, Shared, list[Change]]:
    """Applies the parts of a path in turn.

    Args:
      segments: The parts, each of one layer's block.
      stream: The stream.
      shared: The depth memory.

    Returns:
      The stream, the depth memory, and the change of each part, stacked.

    Raises:
      ReslabError: If the segments have what this loop cannot carry.
    """
    if reason := refusal(segments, stream):
        raise ReslabError(
            "a path through the layers",
            expected="layers that may be left out, repeated and reordered",
            got=reason,
            hint="stack uniform",
        )
    return scan.run(segments, stream, shared)


def parts(
    plan: Sequence[tuple[Sequence, int]], order: Sequence[int]
) -> list[tuple[int, tuple[int, tuple[int, ...]]]]:
    """Cuts a path into runs of layers that one scan can apply.

    Args:
      plan: Blocks of a period and number of periods, of each segment of the stack.
      order: Numbers of the layers along the path.

    Returns:
      Of each run its segment, and the block and the periods that `part` takes.

    >>> parts([("a", 3), ("bc", 2)], (0, 2, 2, 3, 5, 1))
    [(0, (0, (0, 2, 2))), (1, (0, (0, 1))), (0, (0, (1,)))]
    """
    home = [
        (segment, block, period)
        for segment, (blocks, count) in enumerate(plan)
        for period in range(count)
        for block in range(len(blocks))
    ]
    runs = itertools.groupby((home[layer] for layer in order), lambda at: at[:2])
    return [
        (segment, (block, tuple(period for *_, period in run)))
        for (segment, block), run in runs
    ]


def part(segment: Segment, block: int, periods: Sequence[int]) -> Segment:
    """One block of a segment's period, in some of its periods, in any order."""
    return dataclasses.replace(
        segment,
        blocks=(segment.blocks[block],),
        collections={
            name: {"block_0": tree[f"block_{block}"]}
            for name, tree in segment.collections.items()
            if f"block_{block}" in tree
        },
        layers=jnp.asarray(segment.layers) + block,
    ).rows(jnp.asarray(periods))
