"""A state that decays channel by channel: token by token, and in chunks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from reslab.core.varying import varying_like

# Makes log decays and writes (batch, tokens, *state) from a part of the tokens, and
# constants.
Expand = Callable[[Any, Any], tuple[jax.Array, jax.Array]]
# Makes the output (batch, tokens, ...) from states and the same part.
Read = Callable[[jax.Array, Any], jax.Array]
# Tokens whose states are held at once.
CHUNK = 64


def chunked(
    expand: Expand,
    read: Read,
    tokens: Any,
    constants: Any,
    state: jax.Array,
    resets: jax.Array | None,
    size: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Computes state[t] = exp(log_decay[t]) state[t-1] + write[t], and reads it.

    A chunk is an associative scan: log2(size) steps instead of `size`. The states of
    one chunk alone are held, in the backward pass as well, which makes them again.

    Args:
      expand: Makes log decays and writes of some tokens; zeros in every array of
        `tokens` must give a decay of 0 and write nothing.
      read: Makes the output from the states.
      tokens: Arrays (batch, length, ...).
      constants: Arrays that all tokens share.
      state: The state before the first token (batch, *state).
      resets: Where a new document starts (batch, length), booleans, or None.
      size: Tokens of a chunk.

    Returns:
      The output (batch, length, ...) and the state after the last token.
    """
    size = size or CHUNK
    if resets is None:
        resets = jnp.zeros(jax.tree.leaves(tokens)[0].shape[:2], bool)
    length = resets.shape[1]

    def cut(x):
        """(batch, length, ...) to (chunks, batch, size, ...)."""
        x = jnp.pad(x, [(0, 0), (0, -length % size), *[(0, 0)] * (x.ndim - 2)])
        return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)

    def join(one, other):
        (before, first), (after, second) = one, other
        return before * after, after * first + second

    @jax.checkpoint
    def step(state, chunk):
        chunk, resets = chunk
        decay, write = _decays(expand, chunk, constants, resets)
        write = write.at[:, 0].add(decay[:, 0] * state)
        _, states = jax.lax.associative_scan(join, (decay, write), axis=1)
        return states[:, -1], read(states, chunk)

    chunks = jax.tree.map(cut, (tokens, resets))
    state, output = jax.lax.scan(step, varying_like(state, chunks), chunks)
    output = jnp.moveaxis(output, 0, 1)
    return output.reshape(output.shape[0], -1, *output.shape[3:])[:, :length], state


def recurrent(
    expand: Expand,
    read: Read,
    tokens: Any,
    constants: Any,
    state: jax.Array,
    resets: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """Computes the same token by token: the definition; see `chunked`."""
    if resets is None:
        resets = jnp.zeros(jax.tree.leaves(tokens)[0].shape[:2], bool)

    @jax.checkpoint
    def step(state, token):
        token, resets = jax.tree.map(lambda x: x[:, None], token)
        decay, write = _decays(expand, token, constants, resets)
        state = decay[:, 0] * state + write[:, 0]
        return state, read(state[:, None], token)[:, 0]

    time_first = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (tokens, resets))
    start = varying_like(state, time_first)
    state, output = jax.lax.scan(step, start, time_first)
    return jnp.swapaxes(output, 0, 1), state


def _decays(expand, tokens, constants, resets):
    log_decay, write = expand(tokens, constants)
    resets = resets.reshape(*resets.shape, *[1] * (write.ndim - 2))
    return jnp.where(resets, 0, jnp.exp(log_decay)).astype(write.dtype), write
