"""The delta rule: one function for a family of recurrences, in several forms."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from reslab.core.errors import ReslabError, nearest
from reslab.core.precision import statistics_dtype
from reslab.ops import evidence, tiles
from reslab.ops.delta_rule import pallas_tpu
from reslab.ops.delta_rule.chunked import chunked
from reslab.ops.delta_rule.reference import recurrent
from reslab.ops.delta_rule.sequence import divided
from reslab.ops.divided import is_divided

IMPLEMENTATIONS = ("auto", "chunked", "recurrent", "pallas")
# Fewer tokens go one by one, as in decoding.
FEWEST = 16
# The largest system that a sum of powers inverts: experiments/bench/triangular_inverse.
LARGEST_OF_POWERS = 16


def delta_rule(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    beta: jax.Array,
    log_decay: jax.Array | None = None,
    *,
    state: jax.Array | None = None,
    resets: jax.Array | None = None,
    implementation: str = "auto",
    chunk: int = 0,
    inverse: str = "block",
) -> tuple[jax.Array, jax.Array]:
    """Reads an associative memory S that decays and is overwritten.

        S' = diag(exp(log_decay[t])) S[t-1]
        u  = beta[t] (value[t] - S'^T key[t])
        S[t] = S' + key[t] u^T
        y[t] = S[t]^T query[t] / sqrt(key_dim)

    Without a decay it is DeltaNet, with one for each head Gated DeltaNet, with one for
    each channel of the keys Kimi Delta Attention. Given a state and one token, it is
    one step of decoding. The memory and all arithmetic are float32, or float64 for
    float64 inputs. On a mesh that divides the tokens of a row, devices pass memories
    on and gather no tokens.

    Reference: Yang et al., 2024, https://arxiv.org/abs/2406.06484 and
    https://arxiv.org/abs/2412.06464, Eq. 10; Kimi Team, 2025,
    https://arxiv.org/abs/2510.26692, Eq. 1.

    Args:
      query: Shape (batch, length, key_heads, key_dim).
      key: The same shape as `query`; of unit length, for a stable memory.
      value: Shape (batch, length, heads, value_dim), `heads` a multiple of
        `key_heads`; neighbouring heads share a query and a key.
      beta: Strength of each write (batch, length, heads), in (0, 1) or (0, 2).
      log_decay: Logarithm of each decay (batch, length, heads) or (batch, length,
        heads, key_dim), at most 0; minus infinity forgets everything before. None
        forgets nothing.
      state: The memory before the first token (batch, heads, key_dim,
        value_dim); empty if None.
      resets: Where a new document starts (batch, length), booleans; the memory
        is emptied before that token.
      implementation: "recurrent" goes token by token, "chunked" takes `chunk` of them
        at a time, by products of matrices, "pallas" is a TPU kernel of chunks; "auto"
        goes token by token below 16 tokens, else in chunks, by the kernel where that
        was cheaper (`reslab.ops.evidence`).
      chunk: Tokens of a chunk, a power of two; 0 is 128 on a TPU, elsewhere 64, or 32
        with decays of channels. With 1, "auto" is "recurrent", with more "chunked".
      inverse: Method of `triangular_inverse` for the systems of chunks; "neumann"
        only with a `chunk` of at most 16.

    Returns:
      The output (batch, length, heads, value_dim) in the dtype of `query`, and
      the memory after the last token.

    Raises:
      ReslabError: If shapes do not fit, the implementation is unknown, or the method
        of the inverse does not reach the size of a chunk, or if the kernel is asked
        for and cannot do it.

    >>> key = jax.numpy.eye(2)[None, :, None]
    >>> value = jax.numpy.array([3.0, 5.0]).reshape(1, 2, 1, 1)
    >>> _, memory = delta_rule(key, key, value, jax.numpy.ones((1, 2, 1)))
    >>> memory[0, 0, :, 0].tolist()
    [3.0, 5.0]
    """
    if implementation not in IMPLEMENTATIONS:
        raise ReslabError(
            f"delta_rule implementation {implementation!r}",
            hint=nearest(implementation, IMPLEMENTATIONS),
        )
    if chunk and (chunk < 1 or chunk & (chunk - 1)):
        raise ReslabError(
            "delta_rule: chunk", expected="a power of two", got=str(chunk)
        )
    if inverse == "neumann" and not 0 < chunk <= LARGEST_OF_POWERS:
        raise ReslabError(
            "delta_rule: inverse 'neumann'",
            expected=f"chunk at most {LARGEST_OF_POWERS}: with keys alike, its error "
            "in float32 is 6e-5 there, 0.5 at 32 and 8e7 at 64",
            got=f"chunk {chunk or 'of any size'}",
        )
    if query.ndim != 4 or value.ndim != 4:
        name, x = ("query", query) if query.ndim != 4 else ("value", value)
        raise ReslabError(
            f"delta_rule: {name}",
            expected="(batch, length, heads, size)",
            got=str(x.shape),
        )
    if state is None:
        shape = (value.shape[0], value.shape[2], query.shape[3], value.shape[3])
        state = jnp.zeros(shape, statistics_dtype(query.dtype))
    _check(query, key, value, beta, log_decay, state, resets)
    group = value.shape[2] // query.shape[2]
    if group > 1:
        query, key = (jnp.repeat(x, group, axis=2) for x in (query, key))
    if implementation == "auto":
        is_long = chunk > 1 or (not chunk and query.shape[1] >= FEWEST)
        implementation = "auto" if is_long else "recurrent"
    run: Any = recurrent
    if implementation in ("auto", "pallas"):
        obstacle = pallas_tpu.obstacle(query, value, log_decay, chunk)
        is_of_channels = log_decay is not None and log_decay.ndim > 3
        name = "delta_rule_of_channels" if is_of_channels else "delta_rule"
        preferred = evidence.preferred(name)
        form = tiles.choose("delta_rule", implementation, obstacle, preferred)
        implementation = {"reference": "chunked"}.get(form, form)
    if implementation == "pallas":
        run = functools.partial(pallas_tpu.over_devices, pallas_tpu.delta_rule_kernel)
    elif implementation == "chunked":
        run = functools.partial(chunked, size=chunk, inverse=inverse)
    if is_divided(value.shape[1]):
        run = functools.partial(divided, run)
    output, state = run(query, key, value, beta, log_decay, state, resets)
    return output.astype(query.dtype), state


def _check(query, key, value, beta, log_decay, state, resets):
    batch, length, key_heads, key_dim = query.shape
    _, _, heads, value_dim = value.shape
    if heads % key_heads:
        raise ReslabError(
            "delta_rule: value",
            expected=f"a multiple of {key_heads} heads",
            got=str(heads),
        )
    tokens = (batch, length, heads)
    decays = (*tokens, key_dim)
    if log_decay is not None and log_decay.ndim == 3:
        decays = tokens
    expected = {
        "key": (key, query.shape),
        "value": (value, (*tokens, value_dim)),
        "beta": (beta, tokens),
        "log_decay": (log_decay, decays),
        "state": (state, (batch, heads, key_dim, value_dim)),
        "resets": (resets, (batch, length)),
    }
    for name, (array, shape) in expected.items():
        if array is not None and array.shape != shape:
            raise ReslabError(
                f"delta_rule: {name}", expected=f"shape {shape}", got=str(array.shape)
            )
