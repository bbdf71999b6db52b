"""EvoNorm-B1: EvoNorm-B0 without a parameter of its own (Liu et al., 2020)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.precision import statistics_dtype
from reslab.nn.norms._evonorm import EvoNorm
from reslab.nn.norms._running import RunningNorm, instance_mean


class EvoNormB1(EvoNorm, RunningNorm):
    """Divides by the larger of the batch's deviation and a function of the sample.

        y = x / max(sqrt(var_b + epsilon), (x + 1) * sqrt(mean_i(x**2) + epsilon))
            * (1 + gain) + bias

    It stands for norm and activation together. var_b is the biased variance of a
    channel over the batch, running once training is over; mean_i runs over the
    positions of the sample at hand. Everything is computed in float32 whatever the
    input dtype; the output has the dtype of the input. Not for causal models:
    positions of a sample see each other.

    Reference: Liu et al., 2020, https://arxiv.org/abs/2004.02967.

    Tested against a third party's port (`timm`); the authors' code has no B1.

    Attributes: those of `EvoNormB0`.
    """

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Maps `x` of shape (batch, positions..., channels).

        Raises:
          ReslabError: While training, if sequences have no mask or the batch has
            one row.
        """
        if self.is_affine_only:
            return self.affine_alone(x)
        h = x.astype(statistics_dtype(x.dtype))
        root = jnp.sqrt(instance_mean(jnp.square(h)) + self.epsilon)
        deviation = jnp.sqrt(self.batch_variance(h, mask) + self.epsilon)
        return self.affine(h / jnp.maximum(deviation, (h + 1) * root)).astype(x.dtype)


build = EvoNormB1
