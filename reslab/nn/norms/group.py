"""Group normalization (Wu & He, 2018)."""

import flax.linen as nn
import jax

from reslab.core.precision import statistics_dtype
from reslab.nn.norms._grouped import GroupedNorm


class GroupNorm(GroupedNorm):
    """Centres groups of channels and divides them by their standard deviation.

        y = (x - mean_g(x)) / sqrt(var_g(x) + epsilon) * (1 + gain) + bias

    A group is a run of neighbouring channels of one token, or, for images, of one
    sample at all positions; one group of one token is layer normalization. The
    variance is biased. Statistics and the affine map are taken in float32 whatever
    the input dtype; the output has the dtype of the input.

    Reference: Wu & He, 2018, https://arxiv.org/abs/1803.08494, Eq. 1, 2 and 7.

    Tested against Flax's layer; there is no golden file of the authors' code.

    Attributes:
      groups: Number of groups, a divisor of the number of channels. The paper has
        32, on images; channels of one token are fewer numbers.
      is_spatial: Whether statistics also run over the axes between batch and
        channels. Not for causal models.
      epsilon: Added to the variance before the root.
      (and those of `AffineNorm`)

    >>> import jax.numpy as jnp
    >>> layer = GroupNorm(groups=2)
    >>> x = jnp.array([[1.0, 3.0, 10.0, 30.0]])
    >>> y, params = layer.init_with_output(jax.random.key(0), x)
    >>> [round(float(v), 3) for v in y[0]]
    [-1.0, 1.0, -1.0, 1.0]
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalizes `x` of shape (batch, ..., channels) over groups of channels.

        Raises:
          ReslabError: If the groups do not fit the channels.
        """
        h = x.astype(statistics_dtype(x.dtype))
        mean, variance = self.moments(h)
        h = (h - mean) * jax.lax.rsqrt(variance + self.epsilon)
        return self.affine(h).astype(x.dtype)


build = GroupNorm
