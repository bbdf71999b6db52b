"""Attention along depth in two phases, in plain jnp."""

import chex
import jax
import jax.numpy as jnp

from reslab.core.precision import statistics_dtype


def logit(value: jax.Array, query: jax.Array, epsilon: float = 1e-6) -> jax.Array:
    """The product of a query with a source that is normalized.

        q . v / sqrt(mean(v**2) + epsilon)

    Args:
      value: The source (..., embed).
      query: The query, times the gain of the norm (embed,).
      epsilon: Added to the mean square before the root.

    Returns:
      The logit (...).
    """
    product = jnp.sum(value * query.reshape((1,) * (value.ndim - 1) + (-1,)), axis=-1)
    mean_square = jnp.mean(jnp.square(value), axis=-1)
    return product * jax.lax.rsqrt(mean_square + epsilon)


def attend(
    values: jax.Array,
    queries: jax.Array,
    epsilon: float = 1e-6,
    limit: int | jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The first phase: many readers at once over sources that all of them see.

        o_l = sum_i softmax_i(q_l . k_i) v_i,    lse_l = log sum_i exp(q_l . k_i)

    with keys k that are the normalized sources.

    Reference: Kimi Team, 2026, https://arxiv.org/abs/2603.15031 (two-phase form).

    Args:
      values: The sources (rows, batch, length, embed).
      queries: The query of every reader, times the gain of its norm (readers, embed).
      epsilon: Added to mean squares before the root.
      limit: Number of sources that are read, at least 1, which may be traced; all of
        them if None. The others may hold any finite numbers.

    Returns:
      The readings (readers, batch, length, embed) and the logarithms (readers,
      batch, length), at least float32.
    """
    dtype = statistics_dtype(values.dtype)
    wide = values.astype(dtype)
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1) + epsilon)
    logits = jnp.einsum("nbld,sd->snbl", wide, queries.astype(dtype)) * scale[None]
    if limit is not None:
        is_read = jnp.arange(values.shape[0], dtype=jnp.int32) < limit
        logits = jnp.where(is_read[None, :, None, None], logits, -1e30)
    weights = jax.nn.softmax(logits, axis=1)
    readings = jnp.einsum("snbl,nbld->sbld", weights, wide)
    return readings, jax.nn.logsumexp(logits, axis=1)


def weighted_sums(
    values: jax.Array, weights: jax.Array, limit: int | jax.Array | None = None
) -> jax.Array:
    """Sums of sources by weights that are given; see `api.depth_mix`.

    Row after row, not as a product of matrices, which would round on a TPU.

    Args:
      values: The sources (rows, batch, ..., embed).
      weights: Of every reader (readers, rows, batch, ...).
      limit: Number of sources that are read; all if None. The others may hold any
        finite numbers.

    Returns:
      The sums (readers, batch, ..., embed), in the dtype of the weights.
    """
    if limit is not None:
        is_read = jnp.arange(values.shape[0], dtype=jnp.int32) < limit
        is_read = is_read.reshape((1, -1) + (1,) * (weights.ndim - 2))
        weights = jnp.where(is_read, weights, 0)
    wide = values.astype(weights.dtype)
    return jnp.stack([jnp.sum(own[..., None] * wide, axis=0) for own in weights])


def merge(
    reading: jax.Array,
    logsumexp: jax.Array,
    value: jax.Array,
    query: jax.Array,
    epsilon: float = 1e-6,
    is_read: bool | jax.Array = True,
) -> tuple[jax.Array, jax.Array]:
    """The second phase: adds one source to a reading of the first.

        l = q . k,    p = sigmoid(l - lse),    h = o + p (v - o),
        lse' = log(exp(lse) + exp(l))

    Args:
      reading: A reading (batch, length, embed).
      logsumexp: Its logarithm (batch, length).
      value: The source (batch, length, embed).
      query: The reader's query, times the gain of its norm (embed,).
      epsilon: Added to the mean square before the root.
      is_read: Whether the source is added at all; one truth, which may be traced.

    Returns:
      What reading all the sources at once would give, and its logarithm.

    Raises:
      AssertionError: If the shapes differ from those above.
    """
    chex.assert_equal_shape([reading, value])
    chex.assert_shape(logsumexp, reading.shape[:-1])
    wide = value.astype(reading.dtype)
    own = logit(wide, query.astype(reading.dtype), epsilon)
    weight = jnp.where(is_read, jax.nn.sigmoid(own - logsumexp), 0)[..., None]
    total = jnp.where(is_read, jnp.logaddexp(own, logsumexp), logsumexp)
    return reading + weight * (wide - reading), total
