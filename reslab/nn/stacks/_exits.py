"""Outputs after every pass of a loop."""

from typing import Any

import flax.linen as nn
import jax

from reslab.core.losses import LOSSES
from reslab.core.model_state import CONSTANTS
from reslab.core.randomness import DROPOUT
from reslab.core.taps import TAPS
from reslab.core.types import Stream
from reslab.nn.stacks._repeating import RepeatingStack


def streams_after_passes(
    stack: RepeatingStack,
    layers: Any,
    stream: Stream,
    enter: Any,
    states: Any,
    positions: jax.Array,
    segments: jax.Array | None,
):
    """Applies the layers of a loop in every pass; see `RepeatingStack.apply_loop`.

    Returns:
      The streams after each pass, stacked on axis 0, and the new state of the loop.
    """
    first = stack.stages[stack.loop_index].first

    def one_pass(layers, stream, scanned):
        number, own = scanned
        entered, layer = enter(stream, number), first + layers.depth * number
        stream, own = layers(entered, layer, own, positions, segments)
        return stream, (stream, own)

    _, outputs = stack.scan_passes(layers, one_pass, stream, states[stack.loop_index])
    return outputs


def narrowed(ends: nn.Module, streams: Stream) -> jax.Array:
    """The features (passes, batch, length, embed) of stacked streams."""
    narrow = nn.scan(
        lambda ends, carry, stream: (carry, ends.narrow(stream)),
        variable_axes={TAPS: 0, LOSSES: 0},
        variable_broadcast=["params", CONSTANTS],
        split_rngs={"params": False, DROPOUT: True},
    )
    return narrow(ends, (), streams)[1]
