"""Cross-entropy with all logits at once: the definition."""

import jax
import jax.numpy as jnp

from reslab.core.precision import statistics_dtype


def capped(logits: jax.Array, softcap: float) -> jax.Array:
    """Bounds logits smoothly, softcap * tanh(logits / softcap); 0 leaves them alone."""
    return softcap * jnp.tanh(logits / softcap) if softcap else logits


def whole(
    features: jax.Array,
    kernel: jax.Array,
    targets: jax.Array,
    vocabulary_size: int,
    softcap: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Computes every logit of every token; see `api.token_losses`."""
    wide = statistics_dtype(features.dtype)
    products = jnp.matmul(features, kernel, preferred_element_type=wide)
    logits = capped(products, softcap)
    ids = jnp.arange(kernel.shape[1], dtype=targets.dtype).reshape(
        (1,) * targets.ndim + (-1,)
    )
    logits = jnp.where(ids < vocabulary_size, logits, -jnp.inf)
    log_normalizer = jax.nn.logsumexp(logits, axis=-1)
    # Picked by comparison, not by index, so that a vocabulary spread over
    # devices stays where it is.
    target = jnp.sum(jnp.where(ids == targets[..., None], logits, 0.0), axis=-1)
    return log_normalizer - target, log_normalizer
