"""The unrolled loop for histories: a list of sources that grows."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from reslab.core.types import Shared
from reslab.nn.base.history import History
from reslab.nn.stacks._loops.span import Change, Span


def refusal(spans: Sequence[Span], history: History) -> str:
    """Names what of the spans this loop cannot carry; "" is nothing."""
    if not all(isinstance(span.layers, tuple) for span in spans):
        return "layers whose numbers are traced"
    if not isinstance(history.sources, tuple) and spans[0].layers[0] != 0:
        return "an array of sources with an unknown number of written rows"
    return ""


def run(
    spans: Sequence[Span], history: History, shared: Shared
) -> tuple[History, Shared, list[Change]]:
    """Lays all periods out, each over the sources that are written by then.

    Args:
      spans: The spans, whose layers are numbers.
      history: The history before the first period.
      shared: The depth memory.

    Returns:
      The history, the depth memory, and the change of each span, stacked.
    """
    history, changes = history.listed(), []
    for span in spans:
        # A Python number, so that the sites of a layer are static.
        step = span.remembered(static_argnums=3)
        found = []
        for index, layer in enumerate(span.layers):
            variables = jax.tree.map(
                lambda leaf, i=index: leaf[i], (span.collections, span.keys)
            )
            history, entries, change = step(variables, history, shared, (layer, None))
            shared = {**shared, **entries}
            found.append(change)
        changes.append(jax.tree.map(lambda *leaves: jnp.stack(leaves), *found))
    return history, shared, changes
