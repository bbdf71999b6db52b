"""Compressed RMS normalization, for a stream without its mean (Jiang et al., 2023)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.bounds import Epsilon, bounded
from reslab.core.precision import statistics_dtype


@bounded
class CompressedRMSNorm(nn.Module):
    """Normalizes d - 1 features as if the one that makes their sum zero were there.

        y = x / sqrt((sum(x**2) + sum(x)**2) / (features + 1) + epsilon)

    A feature vector of mean zero is known from all but its last feature. This is
    RMS normalization of the completed vector, and so layer normalization of any
    vector that differs from it by a constant, on a stream one feature narrower.
    There are no parameters: gains and biases go into the projections that follow.
    Statistics are taken in float32 whatever the input dtype; the output has the
    dtype of the input.

    Used in a network made for it, not converted from one with layer
    normalization, it normalizes as if the stream had one feature more.

    Reference: Jiang et al., 2023, https://arxiv.org/abs/2305.14858.

    Tested against the authors' PyTorch layer, which adds 1e-5 (their JAX one 1e-6).

    Attributes:
      epsilon: Added to the mean square before the root.

    >>> x = jnp.array([[1.0, 2.0]])
    >>> [round(float(v), 3) for v in CompressedRMSNorm().apply({}, x)[0]]
    [0.463, 0.926]
    """

    epsilon: Epsilon = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalizes `x` of shape (..., features) over its last axis."""
        h = x.astype(statistics_dtype(x.dtype))
        last = jnp.sum(h, axis=-1, keepdims=True)
        total = jnp.sum(jnp.square(h), axis=-1, keepdims=True) + jnp.square(last)
        h = h * jax.lax.rsqrt(total / (h.shape[-1] + 1) + self.epsilon)
        return h.astype(x.dtype)


build = CompressedRMSNorm
