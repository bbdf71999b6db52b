"""Layer normalization (Ba, Kiros & Hinton, 2016)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.bounds import Epsilon, bounded
from reslab.core.precision import statistics_dtype
from reslab.nn.norms._features import AffineNorm


@bounded
class LayerNorm(AffineNorm):
    """Centres each feature vector and divides it by its standard deviation.

        y = (x - mean(x)) / sqrt(var(x) + epsilon) * (1 + gain) + bias

    The variance is biased and computed from the centred values. The gain is
    stored as an offset from one, as in `rms`, unless told otherwise. Statistics
    and the affine map are taken in float32 whatever the input dtype; the output
    has the dtype of the input.

    Reference: Ba, Kiros & Hinton, 2016, https://arxiv.org/abs/1607.06450, Eq. 4.

    Tested against PyTorch's layer, which adds 1e-5.

    Attributes:
      epsilon: Added to the variance before the root.
      (and those of `AffineNorm`)

    >>> layer = LayerNorm()
    >>> x = jnp.array([[1.0, 3.0]])
    >>> y, params = layer.init_with_output(jax.random.key(0), x)
    >>> [round(float(v), 3) for v in y[0]]
    [-1.0, 1.0]
    """

    epsilon: Epsilon = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalizes `x` of shape (..., features) over its last axis."""
        h = x.astype(statistics_dtype(x.dtype))
        h = h - jnp.mean(h, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(h), axis=-1, keepdims=True)
        h = h * jax.lax.rsqrt(variance + self.epsilon)
        return self.affine(h).astype(x.dtype)


build = LayerNorm
