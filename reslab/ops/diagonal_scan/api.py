"""Linear recurrences with a decay per channel."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from reslab.core.errors import ReslabError, nearest
from reslab.core.precision import statistics_dtype
from reslab.ops.diagonal_scan import scans
from reslab.ops.diagonal_scan.sequence import divided
from reslab.ops.divided import is_divided

IMPLEMENTATIONS = ("auto", "chunked", "recurrent")
# Fewer tokens go one by one, as in decoding.
FEWEST = 16


def selective_scan(
    x: jax.Array,
    step: jax.Array,
    rate: jax.Array,
    key: jax.Array,
    query: jax.Array,
    *,
    state: jax.Array | None = None,
    resets: jax.Array | None = None,
    implementation: str = "auto",
    chunk: int = 0,
) -> tuple[jax.Array, jax.Array]:
    """Runs a state space model whose step, input and output depend on the token.

        h[t] = exp(-step[t] rate) * h[t-1] + (step[t] x[t]) key[t]^T
        y[t] = h[t] query[t]

    The state h (channels, states) is never held for more than a chunk of tokens. All
    arithmetic is float32, or float64 for float64 inputs.

    Reference: Gu & Dao, 2023, https://arxiv.org/abs/2312.00752, Algorithm 2, with the
    Euler step of the authors' code for the input.

    Args:
      x: Shape (batch, length, channels).
      step: Size of each step, at least 0, the same shape.
      rate: Rate of decay (channels, states), at least 0.
      key: What a token writes with, (batch, length, states).
      query: What it reads with, the same shape.
      state: The state before the first token (batch, channels, states); zero if None.
      resets: Where a new document starts (batch, length), booleans.
      implementation: "recurrent" goes token by token, "chunked" scans `chunk` of them
        at a time; "auto" is the latter from 16 tokens on.
      chunk: Tokens of a chunk; 0 is 64. With 1, "auto" is "recurrent", with more
        "chunked".

    Returns:
      The output like `x`, and the state after the last token.

    Raises:
      ReslabError: If shapes do not fit, or the implementation is unknown.

    >>> one = jax.numpy.ones((1, 3, 1))
    >>> y, _ = selective_scan(one, one, jax.numpy.log(2.0) * one[0, :1], one, one)
    >>> y[0, :, 0].tolist()
    [1.0, 1.5, 1.75]
    """
    batch, length, channels = x.shape
    shape = (batch, channels, rate.shape[-1])
    wide = statistics_dtype(x.dtype)
    if state is None:
        state = jnp.zeros(shape, wide)
    _check(
        "selective_scan",
        step=(step, x.shape),
        rate=(rate, shape[1:]),
        key=(key, (batch, length, shape[-1])),
        query=(query, (batch, length, shape[-1])),
        state=(state, shape),
        resets=(resets, (batch, length)),
    )
    rate = rate.astype(wide)

    def expand(tokens, rate):
        x, step, key, _ = tokens
        log_decay = -step[..., None] * rate[None, None]
        return log_decay, (step * x)[..., None] * key[:, :, None]

    def read(states, tokens):
        highest = jax.lax.Precision.HIGHEST
        return jnp.einsum("btcn,btn->btc", states, tokens[-1], precision=highest)

    tokens = tuple(a.astype(wide) for a in (x, step, key, query))
    run = _form("selective_scan", implementation, length, chunk)
    y, state = run(expand, read, tokens, rate, state.astype(wide), resets)
    return y.astype(x.dtype), state


def linear_recurrence(
    log_decay: jax.Array,
    write: jax.Array,
    *,
    state: jax.Array | None = None,
    resets: jax.Array | None = None,
    implementation: str = "auto",
    chunk: int = 0,
) -> tuple[jax.Array, jax.Array]:
    """Accumulates writes in a state that decays: h[t] = exp(log_decay) h[t-1] + write.

    All arithmetic is float32, or float64 for float64 inputs.

    Args:
      log_decay: Logarithm of each decay (batch, length, channels), at most 0.
      write: What is added, the same shape.
      state: The state before the first token (batch, channels); zero if None.
      resets: Where a new document starts (batch, length), booleans.
      implementation: As for `selective_scan`.
      chunk: As for `selective_scan`.

    Returns:
      Every state (batch, length, channels) in the dtype of `write`, and the last one.

    Raises:
      ReslabError: If shapes do not fit, or the implementation is unknown.

    >>> one = jax.numpy.ones((1, 3, 1))
    >>> h, _ = linear_recurrence(jax.numpy.log(0.5) * one, one)
    >>> h[0, :, 0].tolist()
    [1.0, 1.5, 1.75]
    """
    batch, length, channels = write.shape
    wide = statistics_dtype(write.dtype)
    if state is None:
        state = jnp.zeros((batch, channels), wide)
    _check(
        "linear_recurrence",
        log_decay=(log_decay, write.shape),
        state=(state, (batch, channels)),
        resets=(resets, (batch, length)),
    )
    run = _form("linear_recurrence", implementation, length, chunk)
    states, state = run(
        lambda tokens, _: tokens,
        lambda states, _: states,
        (log_decay.astype(wide), write.astype(wide)),
        (),
        state.astype(wide),
        resets,
    )
    return states.astype(write.dtype), state


def _form(operation, implementation, length, chunk):
    if implementation not in IMPLEMENTATIONS:
        raise ReslabError(
            f"{operation} implementation {implementation!r}",
            hint=nearest(implementation, IMPLEMENTATIONS),
        )
    if implementation == "auto":
        is_long = length >= FEWEST if not chunk else min(length, chunk) > 1
        implementation = "chunked" if is_long else "recurrent"
    run: Any = scans.recurrent
    if implementation == "chunked":
        run = functools.partial(scans.chunked, size=chunk or None)
    return functools.partial(divided, run) if is_divided(length) else run


def _check(operation, **expected):
    for name, (array, shape) in expected.items():
        if array is not None and array.shape != shape:
            raise ReslabError(
                f"{operation}: {name}", expected=f"shape {shape}", got=str(array.shape)
            )
