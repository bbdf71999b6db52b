"""EvoNorm-S0: a grouped norm and its activation in one (Liu et al., 2020)."""

import flax.linen as nn
import jax

from reslab.core.precision import statistics_dtype
from reslab.nn.norms._evonorm import EvoNorm
from reslab.nn.norms._grouped import GroupedNorm


class EvoNormS0(EvoNorm, GroupedNorm):
    """Gates each channel with its own sigmoid and divides by its group's deviation.

        y = x * sigmoid(slope * x) / sqrt(var_g(x) + epsilon) * (1 + gain) + bias

    It stands for norm and activation together. The slope (the paper's v) is one
    number per channel and starts at one. The variance is biased; the numerator is
    not centred. Everything is computed in float32 whatever the input dtype; the
    output has the dtype of the input.

    Reference: Liu et al., 2020, https://arxiv.org/abs/2004.02967.

    Tested, over positions, against a third party's port (`timm`), whose equation is
    the authors' TensorFlow code; the reading over one token is ours.

    Attributes:
      groups: Number of groups, a divisor of the number of channels. The authors
        have 32, on images, and lower it silently until it divides; here a number
        that does not divide is refused.
      is_spatial: Whether statistics also run over the axes between batch and
        channels, as in the paper. Not for causal models.
      epsilon: Added to the variance before the root.
      (and those of `AffineNorm`, and `is_affine_only`: see `EvoNorm`)

    >>> import jax.numpy as jnp
    >>> layer = EvoNormS0(groups=1)
    >>> x = jnp.array([[-1.0, 1.0]])
    >>> y, params = layer.init_with_output(jax.random.key(0), x)
    >>> [round(float(v), 3) for v in y[0]]
    [-0.269, 0.731]
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `x` of shape (batch, ..., channels).

        Raises:
          ReslabError: If the groups do not fit the channels.
        """
        if self.is_affine_only:
            return self.affine_alone(x)
        h = x.astype(statistics_dtype(x.dtype))
        slope = self.row("slope", nn.initializers.ones, h)
        _, variance = self.moments(h)
        h = h * jax.nn.sigmoid(slope * h) * jax.lax.rsqrt(variance + self.epsilon)
        return self.affine(h).astype(x.dtype)


build = EvoNormS0
