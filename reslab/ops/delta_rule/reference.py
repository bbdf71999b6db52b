"""The delta rule, token by token: the definition."""

import jax
import jax.numpy as jnp

from reslab.core.precision import statistics_dtype
from reslab.core.varying import varying_like


def recurrent(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    beta: jax.Array,
    log_decay: jax.Array | None,
    state: jax.Array,
    resets: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """Applies the rule with a scan over time; see `api.delta_rule`."""
    wide = statistics_dtype(query.dtype)
    if log_decay is None:
        log_decay = jnp.zeros(beta.shape, wide)
    if log_decay.ndim == beta.ndim:
        log_decay = log_decay[..., None]
    decay = jnp.exp(log_decay.astype(wide))
    if resets is not None:
        # A reset clears the memory.
        decay = jnp.where(resets[:, :, None, None], 0.0, decay).astype(wide)
    scaled = query.astype(wide) * query.shape[-1] ** -0.5
    tokens = (scaled, key.astype(wide), value.astype(wide), beta.astype(wide), decay)

    # Rounding errors of products would accumulate along the recurrence.
    def read(memory, address):
        return jnp.einsum(
            "bhkv,bhk->bhv", memory, address, precision=jax.lax.Precision.HIGHEST
        )

    # Only the memory is saved for the backward pass, once per token, instead of its
    # three intermediate forms.
    @jax.checkpoint
    def step(memory, token):
        query, key, value, beta, decay = token
        memory = decay[..., None] * memory
        change = beta[:, :, None] * (value - read(memory, key))
        memory = memory + key[:, :, :, None] * change[:, :, None, :]
        return memory, read(memory, query)

    time_first = [jnp.swapaxes(x, 0, 1) for x in tokens]
    start = varying_like(state.astype(wide), time_first)
    state, output = jax.lax.scan(step, start, time_first)
    return jnp.swapaxes(output, 0, 1), state
