"""Cross-entropy with all logits at once: the definition."""

import jax
import jax.numpy as jnp

from reslab.core.precision import statistics_dtype


def whole(
    features: jax.Array, kernel: jax.Array, targets: jax.Array, vocabulary_size: int
) -> tuple[jax.Array, jax.Array]:
    """Computes every logit of every token; see `api.token_losses`."""
    wide = statistics_dtype(features.dtype)
    logits = jnp.matmul(features, kernel, preferred_element_type=wide)
    ids = jnp.arange(kernel.shape[1], dtype=targets.dtype).reshape(
        (1,) * targets.ndim + (-1,)
    )
    logits = jnp.where(ids < vocabulary_size, logits, -jnp.inf)
    log_normalizer = jax.nn.logsumexp(logits, axis=-1)
    # Picked by comparison, not by index, so that a vocabulary spread over
    # devices stays where it is.
    target = jnp.sum(jnp.where(ids == targets[..., None], logits, 0.0), axis=-1)
    return log_normalizer - target, log_normalizer
