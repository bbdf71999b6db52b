"""Takes the mean off, and nothing else."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.precision import statistics_dtype


class Centre(nn.Module):
    """Subtracts the mean of each feature vector; it has no parameters.

        y = x - mean(x)

    Half of layer normalization: `rms` of the result is the other half. As
    `post_embedding_norm`, with linear `zero_mean`, it keeps the mean of a pre-norm
    stream zero during training. The mean is taken in float32 whatever the input dtype;
    the output has the dtype of the input. Nothing bounds its size, so it is no norm
    for a deep model alone.

    Reference: Jiang et al., 2023, https://arxiv.org/abs/2305.14858, Section 3.1.

    >>> x = jnp.array([[1.0, 3.0]])
    >>> [round(float(v), 3) for v in Centre().apply({}, x)[0]]
    [-1.0, 1.0]
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Centres `x` of shape (..., features) over its last axis."""
        h = x.astype(statistics_dtype(x.dtype))
        return (h - jnp.mean(h, axis=-1, keepdims=True)).astype(x.dtype)


build = Centre
