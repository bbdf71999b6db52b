"""Divergence of one distribution over a vocabulary from another, token by token."""

import jax
import jax.numpy as jnp

from reslab.core.precision import statistics_dtype


def token_divergences(
    features: jax.Array,
    teacher: jax.Array,
    kernel: jax.Array,
    *,
    vocabulary_size: int,
    softcap: float = 0.0,
) -> jax.Array:
    """Computes how far predictions are from those of a teacher with the same head.

        KL(teacher || features) = sum_v p_v (log p_v - log q_v)

    The teacher has no gradient, nor has the kernel through it. Logits of one row at a
    time exist, also in the backward pass.

    Args:
      features: Inputs of the head (rows, length, embed).
      teacher: Those of the teacher; the same shape.
      kernel: The head (embed, padded vocabulary), in the dtype of `features`.
      vocabulary_size: Number of ids; later columns of the kernel are padding.
      softcap: Bound of the logits; 0 disables it.

    Returns:
      The divergence of each token (rows, length), in nats.
    """
    wide = statistics_dtype(features.dtype)

    def logarithms(x, kernel):
        y = jnp.matmul(x, kernel, preferred_element_type=wide)[..., :vocabulary_size]
        y = softcap * jnp.tanh(y / softcap) if softcap else y
        return jax.nn.log_softmax(y)

    @jax.checkpoint
    def row(pair):
        x, other = pair
        wanted = logarithms(other, jax.lax.stop_gradient(kernel))
        wanted = jax.lax.stop_gradient(wanted)
        return jnp.sum(jnp.exp(wanted) * (wanted - logarithms(x, kernel)), axis=-1)

    return jax.lax.map(row, (features, teacher))
