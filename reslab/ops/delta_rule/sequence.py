"""The delta rule over a mesh that divides the tokens of a row."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from reslab.core.precision import statistics_dtype
from reslab.ops.divided import before, of_last, over_tokens

_HIGHEST = jax.lax.Precision.HIGHEST


def divided(
    run: Callable[..., Any],
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    beta: jax.Array,
    log_decay: jax.Array | None,
    state: jax.Array,
    resets: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """Runs on every device's own tokens, and passes memories between devices.

    Tokens change a memory S to P S + Q and read y[t] + R[t] S, where P and R are the
    memory and the output that they leave to an identity without values. The pairs
    (P, Q) of the devices before a device are composed in log2(devices) rounds.

    Args:
      run: The rule on one device; the others are arguments of it.
    """

    def local(tokens, state):
        query, key, value, beta, log_decay, resets = tokens
        key_dim, value_dim = key.shape[-1], value.shape[-1]
        wide = statistics_dtype(query.dtype)
        # More columns of values: none is written, and an identity is read.
        more = jnp.zeros((*value.shape[:-1], key_dim), value.dtype)
        identity = jnp.broadcast_to(
            jnp.eye(key_dim, dtype=wide), (*state.shape[:-1], key_dim)
        )
        start = jnp.concatenate([jnp.zeros(state.shape, wide), identity], axis=-1)
        value = jnp.concatenate([value, more], axis=-1)
        output, end = run(query, key, value, beta, log_decay, start, resets)
        own = end[..., value_dim:], end[..., :value_dim]
        nothing = identity, jnp.zeros(state.shape, wide)
        so_far = before(_after, own, nothing)
        first = _applied(so_far, state.astype(wide))
        read = _product("blhk,bhkv->blhv", output[..., value_dim:], first)
        return output[..., :value_dim] + read, of_last(_applied(own, first))

    tokens = query, key, value, beta, log_decay, resets
    return over_tokens(local)(tokens, state)


def _product(equation: str, *operands: jax.Array) -> jax.Array:
    return jnp.einsum(equation, *operands, precision=_HIGHEST)


def _applied(change, memory):
    kept, added = change
    return _product("bhij,bhjv->bhiv", kept, memory) + added


def _after(one, other):
    kept, _ = other
    return _product("bhij,bhjk->bhik", kept, one[0]), _applied(other, one[1])
