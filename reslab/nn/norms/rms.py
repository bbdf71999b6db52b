"""RMS normalization with a unit-offset gain (Zhang & Sennrich, 2019)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.bounds import Epsilon, bounded
from reslab.core.precision import statistics_dtype
from reslab.nn.norms._features import FeatureNorm


@bounded
class RMSNorm(FeatureNorm):
    """Divides each feature vector by its root mean square.

        y = x / sqrt(mean(x**2) + epsilon) * (1 + gain)

    The gain is stored as an offset from one, so weight decay pulls it toward
    the identity instead of toward zero; of two checkpoints of one function, the
    one that stores the gain itself holds numbers larger by one. Statistics and
    the gain's product are taken in float32 whatever the input dtype; the output
    has the dtype of the input.

    Reference: Zhang & Sennrich, 2019, https://arxiv.org/abs/1910.07467, Eq. 4;
    the offset is the form of Gemma and Qwen3-Next.

    Tested against their layers, Llama's and PyTorch's.

    Attributes:
      epsilon: Added to the mean square before the root.
      use_gain: Whether to learn a per-feature gain.
      is_rounded_before_gain: Whether the normalized features are rounded to the
        dtype of the input before the gain multiplies them, in that dtype, as in
        Llama; else they are rounded once, at the end, as in Gemma.
      (and those of `FeatureNorm`)

    >>> layer = RMSNorm()
    >>> x = jnp.full((2, 4), 3.0)
    >>> y, params = layer.init_with_output(jax.random.key(0), x)
    >>> [round(float(v), 3) for v in y[0]]
    [1.0, 1.0, 1.0, 1.0]
    """

    epsilon: Epsilon = 1e-6
    use_gain: bool = True
    is_rounded_before_gain: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalizes `x` of shape (..., features) over its last axis."""
        h = x.astype(statistics_dtype(x.dtype))
        mean_square = jnp.mean(jnp.square(h), axis=-1, keepdims=True)
        h = h * jax.lax.rsqrt(mean_square + self.epsilon)
        if self.is_rounded_before_gain:
            h = h.astype(x.dtype)
        if self.use_gain:
            h = h * self.gain_row(h).astype(h.dtype)
        return h.astype(x.dtype)


build = RMSNorm
