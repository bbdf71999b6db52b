"""A state that decays by channel, over a mesh that divides the tokens of a row."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from reslab.ops.diagonal_scan.scans import Expand, Read
from reslab.ops.divided import before, of_last, over_tokens


def divided(
    run: Callable[..., Any],
    expand: Expand,
    read: Read,
    tokens: Any,
    constants: Any,
    state: jax.Array,
    resets: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """Runs on every device's own tokens, and passes states between devices.

    A first run finds what the tokens of a device leave to an empty state, and of a
    state of ones without writes: their whole decay. The states before each device
    follow in log2(devices) rounds, and a second run reads from there.

    Args:
      run: The recurrence on one device; the others are arguments of it.
    """

    def both(part, constants):
        log_decay, write = expand(part, constants)
        doubled = jnp.stack([write, jnp.zeros_like(write)], axis=2)
        return jnp.expand_dims(log_decay, 2), doubled

    def nothing_of(states, _):
        return states[:, :, 0, ..., 0] * 0

    def local(given, whole):
        (tokens, resets), (constants, state) = given, whole
        start = jnp.stack([jnp.zeros_like(state), jnp.ones_like(state)], axis=1)
        _, end = run(both, nothing_of, tokens, constants, start, resets)
        own = end[:, 1], end[:, 0]
        kept, added = before(
            lambda one, other: (other[0] * one[0], other[0] * one[1] + other[1]),
            own,
            (jnp.ones_like(own[0]), jnp.zeros_like(own[1])),
        )
        first = kept * state + added
        output, last = run(expand, read, tokens, constants, first, resets)
        return output, of_last(last)

    return over_tokens(local)((tokens, resets), (constants, state))
