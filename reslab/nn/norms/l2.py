"""Scale normalization: one learned length for all vectors (Nguyen & Salazar, 2019)."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.bounds import Epsilon, bounded
from reslab.core.precision import statistics_dtype
from reslab.nn.norms._features import scalar


@bounded
class ScaleNorm(nn.Module):
    """Gives each feature vector the same learned length.

        y = gain * x / max(||x||, epsilon)

    The gain is one number, stored as itself; it starts at sqrt(features), where
    this is RMS normalization. The length and the product are taken in float32
    whatever the input dtype; the output has the dtype of the input, and the
    gradient is finite at zero.

    Reference: Nguyen & Salazar, 2019, https://arxiv.org/abs/1910.05895.

    Start and epsilon were read in the authors' code, which was not run.

    Attributes:
      epsilon: The length below which vectors are not lengthened further.
      param_dtype: Dtype in which the gain is stored.

    >>> layer = ScaleNorm()
    >>> x = jnp.array([[3.0, 4.0]])
    >>> y, params = layer.init_with_output(jax.random.key(0), x)
    >>> [round(float(v), 3) for v in y[0]]
    [0.849, 1.131]
    """

    epsilon: Epsilon = 1e-5
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalizes `x` of shape (..., features) over its last axis."""
        h = x.astype(statistics_dtype(x.dtype))
        start = math.sqrt(x.shape[-1])
        gain = scalar(self, "gain", start, self.param_dtype).astype(h.dtype)
        square = jnp.sum(jnp.square(h), axis=-1, keepdims=True)
        # Bounds the square: the root has no gradient at zero.
        h = gain * h * jax.lax.rsqrt(jnp.maximum(square, self.epsilon**2))
        return h.astype(x.dtype)


build = ScaleNorm
