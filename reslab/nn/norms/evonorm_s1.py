"""EvoNorm-S1: SiLU over the deviation of a group, norm and activation in one."""

import flax.linen as nn
import jax

from reslab.core.precision import statistics_dtype
from reslab.nn.norms._evonorm import EvoNorm
from reslab.nn.norms._grouped import GroupedNorm


class EvoNormS1(EvoNorm, GroupedNorm):
    """Divides SiLU of each channel by the standard deviation of its group.

        y = silu(x) / sqrt(var_g(x) + epsilon) * (1 + gain) + bias

    It stands for norm and activation together; `evonorm_s0` with its slope fixed
    at one. The variance is biased; the numerator is not centred, and the output
    depends on the scale of the input. Everything is computed in float32 whatever
    the input dtype; the output has the dtype of the input.

    Reference: Liu et al., 2020, https://arxiv.org/abs/2004.02967.

    Tested, over positions, against a third party's port (`timm`); code of the
    authors for this one was not seen, and the reading over one token is ours.

    Attributes:
      groups: Number of groups, a divisor of the number of channels; the port has
        32, on images.
      is_spatial: Whether statistics also run over the axes between batch and
        channels, as in the paper. Not for causal models.
      epsilon: Added to the variance before the root.
      (and those of `AffineNorm`, and `is_affine_only`: see `EvoNorm`)

    >>> import jax.numpy as jnp
    >>> layer = EvoNormS1(groups=1)
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
        _, variance = self.moments(h)
        h = jax.nn.silu(h) * jax.lax.rsqrt(variance + self.epsilon)
        return self.affine(h).astype(x.dtype)


build = EvoNormS1
