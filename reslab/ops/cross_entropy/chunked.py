"""Cross-entropy in chunks of the vocabulary: logits are never held whole."""

import functools

import jax
import jax.numpy as jnp

from reslab.core.precision import statistics_dtype
from reslab.core.varying import varying_like
from reslab.ops.cross_entropy.reference import capped


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def chunked(
    features: jax.Array,
    kernel: jax.Array,
    targets: jax.Array,
    vocabulary_size: int,
    chunks: int,
    softcap: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Scans over chunks with a running maximum and sum; see `api.token_losses`.

    Chunk c holds the ids c, c + chunks, c + 2 chunks, ...: strided, because
    then each device of a vocabulary spread in contiguous parts has an equal
    share of every chunk. The backward pass computes each chunk's logits again.
    """
    return _forward(features, kernel, targets, vocabulary_size, chunks, softcap)[0]


def _forward(features, kernel, targets, vocabulary_size, chunks, softcap):
    wide = statistics_dtype(features.dtype)
    known = targets, vocabulary_size, chunks, softcap

    def step(carry, chunk):
        maximum, total, target = carry
        logits, is_target = _logits(features, chunk, *known)
        larger = jnp.maximum(maximum, jnp.max(logits, axis=-1))
        terms = jnp.exp(logits - larger[..., None])
        total = total * jnp.exp(maximum - larger) + jnp.sum(terms, axis=-1)
        target = target + jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
        return (larger, total, target), None

    # The first chunk holds id 0, so the maximum is finite from then on.
    zeros = jnp.zeros(targets.shape, wide)
    start = (zeros - jnp.inf, zeros, zeros)
    start = varying_like(start, features)
    (maximum, total, target), _ = jax.lax.scan(step, start, _split(kernel, chunks))
    log_normalizer = maximum + jnp.log(total)
    outputs = (log_normalizer - target, log_normalizer)
    return outputs, (features, kernel, targets, log_normalizer)


def _backward(vocabulary_size, chunks, softcap, saved, cotangents):
    features, kernel, targets, log_normalizer = saved
    nll_bar, log_normalizer_bar = (x[..., None] for x in cotangents)
    wide = log_normalizer.dtype
    tokens = tuple(range(targets.ndim))
    known = targets, vocabulary_size, chunks, softcap

    def step(features_bar, chunk):
        logits, is_target = _logits(features, chunk, *known)
        probability = jnp.exp(logits - log_normalizer[..., None])
        logits_bar = (nll_bar + log_normalizer_bar) * probability
        logits_bar = logits_bar - jnp.where(is_target, nll_bar, 0.0)
        if softcap:
            # The derivative of the cap; columns of padding have no gradient.
            slope = 1 - jnp.square(logits / softcap)
            logits_bar = jnp.where(jnp.isfinite(logits), logits_bar * slope, 0.0)
        logits_bar = logits_bar.astype(features.dtype)
        _, part = chunk
        features_bar = features_bar + jnp.matmul(
            logits_bar, part.T, preferred_element_type=wide
        )
        part_bar = jnp.tensordot(
            features, logits_bar, (tokens, tokens), preferred_element_type=wide
        )
        return features_bar, part_bar.astype(kernel.dtype)

    start = varying_like(jnp.zeros(features.shape, wide), features)
    features_bar, parts_bar = jax.lax.scan(step, start, _split(kernel, chunks))
    kernel_bar = jnp.moveaxis(parts_bar, 0, 2).reshape(kernel.shape[0], -1)
    kernel_bar = kernel_bar[:, : kernel.shape[1]]
    return features_bar.astype(features.dtype), kernel_bar, None


chunked.defvjp(_forward, _backward)


def _split(kernel: jax.Array, chunks: int) -> tuple[jax.Array, jax.Array]:
    """Numbers of the chunks, and their columns (chunks, embed, vocabulary)."""
    embed, vocabulary = kernel.shape
    padded = jnp.pad(kernel, ((0, 0), (0, -vocabulary % chunks)))
    parts = jnp.moveaxis(padded.reshape(embed, -1, chunks), 2, 0)
    return jnp.arange(chunks, dtype=jnp.int32), parts


def _logits(features, chunk, targets, vocabulary_size, chunks, softcap):
    """Logits of a chunk, and whether each is its token's target."""
    index, part = chunk
    wide = statistics_dtype(features.dtype)
    products = jnp.matmul(features, part, preferred_element_type=wide)
    logits = capped(products, softcap)
    # Padded columns have ids from vocabulary_size on.
    row = jnp.arange(part.shape[1], dtype=targets.dtype)
    ids = (row * chunks + index).reshape((1,) * targets.ndim + (-1,))
    logits = jnp.where(ids < vocabulary_size, logits, -jnp.inf)
    return logits, ids == targets[..., None]
