"""The gated delta rule: one function, several forms."""

import jax
import jax.numpy as jnp

from reslab.core.errors import ReslabError, nearest
from reslab.core.precision import statistics_dtype
from reslab.ops.gated_delta.chunked import chunked
from reslab.ops.gated_delta.reference import recurrent

IMPLEMENTATIONS = ("auto", "chunked", "recurrent")
# Fewer tokens go one by one, as in decoding.
FEWEST = 16


def gated_delta_rule(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    beta: jax.Array,
    log_decay: jax.Array,
    *,
    state: jax.Array | None = None,
    resets: jax.Array | None = None,
    implementation: str = "auto",
) -> tuple[jax.Array, jax.Array]:
    """Reads an associative memory S that decays and is overwritten.

        S' = exp(log_decay[t]) S[t-1]
        u  = beta[t] (value[t] - S'^T key[t])
        S[t] = S' + key[t] u^T
        y[t] = S[t]^T query[t] / sqrt(key_dim)

    With a log decay of zero it is DeltaNet. Given a state and one token, it is
    one step of decoding. The memory and all arithmetic are float32, or float64
    for float64 inputs.

    Reference: Yang et al., 2024, https://arxiv.org/abs/2412.06464, Eq. 10.

    Args:
      query: Shape (batch, length, heads, key_dim).
      key: The same shape as `query`; of unit length, for a stable memory.
      value: Shape (batch, length, heads, value_dim).
      beta: Strength of each write (batch, length, heads), in (0, 1) or (0, 2).
      log_decay: Logarithm of each decay (batch, length, heads), at most 0; minus
        infinity forgets everything before.
      state: The memory before the first token (batch, heads, key_dim,
        value_dim); empty if None.
      resets: Where a new document starts (batch, length), booleans; the memory
        is emptied before that token.
      implementation: "recurrent" goes token by token, "chunked" takes 64 of them at
        a time (128 on a TPU), by products of matrices; "auto" is the latter from 16
        tokens on.

    Returns:
      The output (batch, length, heads, value_dim) in the dtype of `query`, and
      the memory after the last token.

    Raises:
      ReslabError: If shapes do not fit, or the implementation is unknown.

    >>> key = jax.numpy.eye(2)[None, :, None]
    >>> value = jax.numpy.array([3.0, 5.0]).reshape(1, 2, 1, 1)
    >>> one = jax.numpy.ones((1, 2, 1))
    >>> _, memory = gated_delta_rule(key, key, value, one, 0 * one)
    >>> memory[0, 0, :, 0].tolist()
    [3.0, 5.0]
    """
    if implementation not in IMPLEMENTATIONS:
        raise ReslabError(
            f"gated_delta_rule implementation {implementation!r}",
            hint=nearest(implementation, IMPLEMENTATIONS),
        )
    if query.ndim != 4:
        raise ReslabError(
            "gated_delta_rule: query",
            expected="(batch, length, heads, key_dim)",
            got=str(query.shape),
        )
    batch, length, heads, key_dim = query.shape
    memory_shape = (batch, heads, key_dim, value.shape[-1])
    if state is None:
        state = jnp.zeros(memory_shape, statistics_dtype(query.dtype))
    expected = {
        "key": (key, query.shape),
        "value": (value, (*query.shape[:3], value.shape[-1])),
        "beta": (beta, query.shape[:3]),
        "log_decay": (log_decay, query.shape[:3]),
        "state": (state, memory_shape),
        "resets": (resets, (batch, length)),
    }
    for name, (array, shape) in expected.items():
        if array is not None and array.shape != shape:
            raise ReslabError(
                f"gated_delta_rule: {name}",
                expected=f"shape {shape}",
                got=str(array.shape),
            )
    if implementation == "auto":
        implementation = "chunked" if length >= FEWEST else "recurrent"
    run = chunked if implementation == "chunked" else recurrent
    return run(query, key, value, beta, log_decay, state, resets)
