"""A dense projection whose output has mean zero (Jiang et al., 2023)."""

import jax
import jax.numpy as jnp

from reslab.core.precision import statistics_dtype
from reslab.nn.linears.dense import Dense


class ZeroMean(Dense):
    """Takes the mean over the outputs off what is written to the residual stream.

        y = x . (kernel - mean(kernel)) + (bias - mean(bias)),    means over outputs

    Only projections whose output is the stream are recentred, those whose last
    logical axis is "embed" alone; all others are `dense`. The means are taken in
    float32 in every step, so training keeps them zero: with a norm `centre` after the
    embedding a pre-norm model with `rms` computes, and learns, what one with `layer`
    without biases does. The transform `pre_ln_to_pre_rms` recentres once instead.

    Reference: Jiang et al., 2023, https://arxiv.org/abs/2305.14858, Section 3.2.
    Tested against the authors' PyTorch layer; their JAX layer takes the mean over the
    inputs, so its output is not of mean zero.

    Attributes:
      (those of `LinearModule`)
    """

    def used(self, value: jax.Array) -> jax.Array:
        """Recentres a kernel or bias over its last axis."""
        if self.output_axes != ("embed",):
            return value
        wide = value.astype(statistics_dtype(value.dtype))
        return wide - jnp.mean(wide, axis=-1, keepdims=True)


build = ZeroMean
