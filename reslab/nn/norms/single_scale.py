"""Single-scale RMS normalization: one gain for all features (Park et al., 2025)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.bounds import Epsilon, bounded
from reslab.core.precision import statistics_dtype
from reslab.nn.norms._features import scalar


@bounded
class SingleScaleNorm(nn.Module):
    """Divides by the root mean square and multiplies by one learned number.

        y = x / sqrt(mean(x**2) + epsilon) * (1 + gain)

    No feature has a gain of its own, so none is privileged: rotating the input
    rotates the output. The gain is stored as an offset from one, as in `rms`.
    Statistics and the product are taken in float32 whatever the input dtype; the
    output has the dtype of the input.

    Reference: Park et al., 2025, https://arxiv.org/abs/2506.19697, Eq. 3.

    The paper writes the length of the vector below x; the authors' published code
    has the root mean square, with a gain that starts at one. This is the code's
    form, tested against it; `l2` is the form with the length.

    Attributes:
      epsilon: Added to the mean square before the root.
      param_dtype: Dtype in which the gain is stored.

    >>> layer = SingleScaleNorm()
    >>> x = jnp.array([[3.0, 4.0]])
    >>> y, params = layer.init_with_output(jax.random.key(0), x)
    >>> [round(float(v), 3) for v in y[0]]
    [0.849, 1.131]
    """

    epsilon: Epsilon = 1e-6
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalizes `x` of shape (..., features) over its last axis."""
        h = x.astype(statistics_dtype(x.dtype))
        mean_square = jnp.mean(jnp.square(h), axis=-1, keepdims=True)
        gain = scalar(self, "gain", 0.0, self.param_dtype).astype(h.dtype)
        h = h * jax.lax.rsqrt(mean_square + self.epsilon) * (1.0 + gain)
        return h.astype(x.dtype)


build = SingleScaleNorm
