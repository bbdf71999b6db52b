"""Layer normalization by a fixed deviation, on the way to none (Heimersheim, 2024)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.bounds import Positive, bounded
from reslab.core.precision import statistics_dtype
from reslab.nn.norms._features import AffineNorm


@bounded
class FakeLayerNorm(AffineNorm):
    """Centres each feature vector and divides it by a number known beforehand.

        y = (x - mean(x)) / deviation * (1 + gain) + bias

    An affine map of its input, so the next projection can take it in whole. The
    deviation is not a parameter: it is what layer normalization divided by on
    average, epsilon included, before it was removed. It is computed in float32
    whatever the input dtype; the output has the dtype of the input.

    Reference: Baroni et al., 2025, https://arxiv.org/abs/2507.02559; Heimersheim,
    2024, https://arxiv.org/abs/2409.13710.

    Tested against the authors' code. Without a bias, that code leaves out centring
    and division by a slip; this one does not.

    Attributes:
      deviation: What every centred vector is divided by, above zero.
      (and those of `AffineNorm`)

    Raises:
      ReslabError: If the deviation is not above zero.

    >>> layer = FakeLayerNorm(deviation=2.0)
    >>> x = jnp.array([[1.0, 3.0]])
    >>> y, params = layer.init_with_output(jax.random.key(0), x)
    >>> [round(float(v), 3) for v in y[0]]
    [-0.5, 0.5]
    """

    deviation: Positive = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `x` of shape (..., features), centred over its last axis."""
        h = x.astype(statistics_dtype(x.dtype))
        h = (h - jnp.mean(h, axis=-1, keepdims=True)) / self.deviation
        return self.affine(h).astype(x.dtype)


build = FakeLayerNorm
