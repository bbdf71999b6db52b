"""EvoNorm-B0: a norm over the batch and its activation in one (Liu et al., 2020)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.precision import statistics_dtype
from reslab.nn.norms._evonorm import EvoNorm
from reslab.nn.norms._running import RunningNorm, instance_mean


class EvoNormB0(EvoNorm, RunningNorm):
    """Divides by the larger of the batch's deviation and a linear function.

        y = x / max(sqrt(var_b + epsilon), slope * x + sqrt(var_i(x) + epsilon))
            * (1 + gain) + bias

    It replaces both norm and activation. var_b is the variance of a channel over the
    batch (the running one outside of training); var_i is the variance of a channel
    over the positions of one sample, always computed from that sample. The slope (the
    paper's v) is one number per channel and starts at one. All variances are biased, as
    in the authors' code; a third party's port (`timm`) makes the running one
    unbiased. Everything is computed in float32 whatever the input dtype; the output has
    the dtype of the input. Not for causal models: positions of a sample see each other.

    Reference: Liu et al., 2020, https://arxiv.org/abs/2004.02967.

    Tested against `timm`, whose equation equals the authors' TensorFlow code.

    Attributes:
      momentum: Share of the running variance that a step keeps.
      epsilon: Added to the variances before the root.
      (and those of `AffineNorm`, and `is_affine_only`: see `EvoNorm`)
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
        slope = self.row("slope", nn.initializers.ones, h)
        of_sample = instance_mean(jnp.square(h - instance_mean(h)))
        other = slope * h + jnp.sqrt(of_sample + self.epsilon)
        deviation = jnp.sqrt(self.batch_variance(h, mask) + self.epsilon)
        return self.affine(h / jnp.maximum(deviation, other)).astype(x.dtype)


build = EvoNormB0
