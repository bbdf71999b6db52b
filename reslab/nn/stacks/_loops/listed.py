"""The unrolled loop for histories: a list of sources that grows."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from reslab.core.types import Shared
from reslab.nn.base.history import History
from reslab.nn.stacks._loops.segment import Change, Segment


def refusal(segments: Sequence[Segment], history: History) -> str:
    """Names what of the segments this loop cannot carry; "" is nothing."""
    if not all(isinstance(segment.layers, tuple) for segment in segments):
        return "layers whose numbers are traced"
    if not isinstance(history.sources, tuple) and segments[0].layers[0] != 0:
        return "an array of sources with an unknown number of written rows"
    return ""


def run(
    segments: Sequence[Segment], history: History, shared: Shared
) -> tuple[History, Shared, list[Change]]:
    """Lays all periods out, each over the sources that are written by then.

    Args:
      segments: The segments, whose layers are numbers.
      history: The history before the first period.
      shared: The depth memory.

    Returns:
      The history, the depth memory, and the change of each segment, stacked.
    """
    history, changes = history.listed(), []
    for segment in segments:
        # A number, not an array: the sites of a layer are known.
        step = segment.remembered(static_argnums=3)
        found = []
        for index, layer in enumerate(segment.layers):
            variables = jax.tree.map(
                lambda leaf, i=index: leaf[i], (segment.collections, segment.keys)
            )
            history, entries, change = step(variables, history, shared, (layer, None))
            shared = {**shared, **entries}
            found.append(change)
        changes.append(jax.tree.map(lambda *leaves: jnp.stack(leaves), *found))
    return history, shared, changes
