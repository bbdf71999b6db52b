"""Linear attention with a decay per head, token by token: the definition."""

import jax
import jax.numpy as jnp

from reslab.core.precision import statistics_dtype
from reslab.core.varying import varying_like


def recurrent(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    log_decay: jax.Array,
    state: jax.Array,
    resets: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """Applies the recurrence with a scan over time; see `api.ssd`."""
    wide = statistics_dtype(query.dtype)
    decay = jnp.exp(log_decay.astype(wide))
    if resets is not None:
        decay = jnp.where(resets[:, :, None], 0.0, decay).astype(wide)
    copies = value.shape[2] // query.shape[2]

    # Only the memory is saved for the backward pass, once per token.
    @jax.checkpoint
    def step(memory, token):
        query, key, value, decay = token
        query, key = (jnp.repeat(x, copies, axis=1) for x in (query, key))
        memory = decay[:, :, None, None] * memory
        memory = memory + key[:, :, :, None] * value[:, :, None, :]
        # Rounding errors of products would accumulate along the recurrence.
        highest = jax.lax.Precision.HIGHEST
        return memory, jnp.einsum("bhkv,bhk->bhv", memory, query, precision=highest)

    tokens = (*(x.astype(wide) for x in (query, key, value)), decay)
    time_first = [jnp.swapaxes(x, 0, 1) for x in tokens]
    start = varying_like(state.astype(wide), time_first)
    state, output = jax.lax.scan(step, start, time_first)
    return jnp.swapaxes(output, 0, 1).astype(query.dtype), state
