"""Linear attention with a decay over a mesh that divides the tokens of a row."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from reslab.core.precision import statistics_dtype
from reslab.ops.divided import before, of_last, over_tokens


def divided(
    run: Callable[..., Any],
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    log_decay: jax.Array,
    state: jax.Array,
    resets: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """Runs on every device's own tokens, and passes memories between devices.

    Tokens change a memory S to d S + Q, where d is their whole decay and Q the memory
    that they leave to an empty one. The pairs (d, Q) of the devices before a device
    are composed in log2(devices) rounds.

    Args:
      run: The recurrence on one device; the others are arguments of it.
    """

    def local(tokens, state):
        query, key, value, log_decay, resets = tokens
        wide = statistics_dtype(query.dtype)
        output, added = run(
            query, key, value, log_decay, jnp.zeros_like(state, wide), resets
        )
        decay = jnp.exp(jnp.cumsum(log_decay.astype(wide), axis=1))
        if resets is not None:
            is_first = jnp.cumsum(resets, axis=1) == 0
            decay = jnp.where(is_first[..., None], decay, 0)
        own = decay[:, -1, :, None, None], added
        nothing = jnp.ones_like(own[0]), jnp.zeros_like(added)
        kept, so_far = before(_after, own, nothing)
        first = kept * state.astype(wide) + so_far
        copies = value.shape[2] // query.shape[2]
        query = jnp.repeat(query.astype(wide), copies, axis=2) * decay[..., None]
        highest = jax.lax.Precision.HIGHEST
        read = jnp.einsum("blhk,bhkv->blhv", query, first, precision=highest)
        output = (output.astype(wide) + read).astype(output.dtype)
        return output, of_last(own[0] * first + added)

    return over_tokens(local)((query, key, value, log_decay, resets), state)


def _after(one, other):
    return other[0] * one[0], other[0] * one[1] + other[1]
