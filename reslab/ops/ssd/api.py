"""Linear attention with a decay per head: state space duality."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from reslab.core.errors import ReslabError, nearest
from reslab.core.precision import statistics_dtype
from reslab.ops import evidence, tiles
from reslab.ops.delta_rule.pallas_tpu import over_devices
from reslab.ops.divided import is_divided
from reslab.ops.ssd import pallas_tpu
from reslab.ops.ssd.chunked import chunked
from reslab.ops.ssd.reference import recurrent
from reslab.ops.ssd.sequence import divided

IMPLEMENTATIONS = ("auto", "chunked", "recurrent", "pallas")
# Fewer tokens go one by one, as in decoding.
FEWEST = 16


def ssd(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    log_decay: jax.Array,
    *,
    state: jax.Array | None = None,
    resets: jax.Array | None = None,
    implementation: str = "auto",
    chunk: int = 0,
) -> tuple[jax.Array, jax.Array]:
    """Reads an associative memory S that decays and is added to.

        S[t] = exp(log_decay[t]) S[t-1] + key[t] value[t]^T
        y[t] = S[t]^T query[t]

    This is the recurrence of Mamba-2, of retention (a constant decay) and of linear
    attention (none). Head h reads the queries and keys of group
    h // (heads // groups). The memory and all arithmetic are float32, or float64 for
    float64 inputs.

    Reference: Dao & Gu, 2024, https://arxiv.org/abs/2405.21060, Section 6.

    Args:
      query: Shape (batch, length, groups, key_dim).
      key: The same shape as `query`.
      value: Shape (batch, length, heads, value_dim).
      log_decay: Logarithm of each decay (batch, length, heads), at most 0; minus
        infinity forgets everything before.
      state: The memory before the first token (batch, heads, key_dim, value_dim);
        empty if None.
      resets: Where a new document starts (batch, length), booleans; the memory is
        emptied before that token.
      implementation: "recurrent" goes token by token, "chunked" takes `chunk` of them
        at a time, by products of matrices, "pallas" is a TPU kernel of chunks; "auto"
        goes token by token below 16 tokens, else in chunks, by the kernel where that
        was cheaper (`reslab.ops.evidence`).
      chunk: Tokens of a chunk; 0 is 128 on a TPU, elsewhere 64. With 1, "auto" is
        "recurrent", with more "chunked".

    Returns:
      The output (batch, length, heads, value_dim) in the dtype of `query`, and the
      memory after the last token.

    Raises:
      ReslabError: If shapes do not fit, the implementation is unknown, or the kernel
        is asked for and cannot do it.

    >>> one = jax.numpy.ones((1, 3, 1, 1))
    >>> y, _ = ssd(one, one, one, jax.numpy.log(0.5) * one[..., 0])
    >>> y[0, :, 0, 0].tolist()
    [1.0, 1.5, 1.75]
    """
    if implementation not in IMPLEMENTATIONS:
        raise ReslabError(
            f"ssd implementation {implementation!r}",
            hint=nearest(implementation, IMPLEMENTATIONS),
        )
    if query.ndim != 4 or value.ndim != 4 or value.shape[2] % query.shape[2]:
        raise ReslabError(
            "ssd: query and value",
            expected="(batch, length, groups, key_dim) and (batch, length, a multiple "
            "of groups, value_dim)",
            got=f"{query.shape} and {value.shape}",
        )
    batch, length, _, key_dim = query.shape
    heads, value_dim = value.shape[2:]
    memory_shape = (batch, heads, key_dim, value_dim)
    if state is None:
        state = jnp.zeros(memory_shape, statistics_dtype(query.dtype))
    expected = {
        "key": (key, query.shape),
        "value": (value, (batch, length, heads, value_dim)),
        "log_decay": (log_decay, (batch, length, heads)),
        "state": (state, memory_shape),
        "resets": (resets, (batch, length)),
    }
    for name, (array, shape) in expected.items():
        if array is not None and array.shape != shape:
            raise ReslabError(
                f"ssd: {name}", expected=f"shape {shape}", got=str(array.shape)
            )
    if implementation == "auto":
        is_long = length >= FEWEST if not chunk else min(length, chunk) > 1
        implementation = "auto" if is_long else "recurrent"
    run: Any = recurrent
    if implementation in ("auto", "pallas"):
        obstacle = pallas_tpu.obstacle(query, value, chunk)
        # Products of float32 are made of more passes: nothing was measured.
        is_narrow = query.dtype == jnp.bfloat16
        preferred = evidence.preferred("ssd") if is_narrow else "reference"
        form = tiles.choose("ssd", implementation, obstacle, preferred)
        implementation = {"reference": "chunked"}.get(form, form)
    if implementation == "pallas":
        given = query, key, value, None, log_decay, state, resets
        return over_devices(pallas_tpu.ssd_kernel, *given)
    if implementation == "chunked":
        run = functools.partial(chunked, size=chunk or None)
    if is_divided(length):
        run = functools.partial(divided, run)
    return run(query, key, value, log_decay, state, resets)
