"""PRepBN: from layer normalization to RepBN while training (Guo et al., 2024)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core import registry
from reslab.core.bounds import Count, Whole, bounded
from reslab.core.model_state import BATCH_STATS
from reslab.core.precision import statistics_dtype
from reslab.nn.norms.rep_batch import RepBatchNorm


@bounded
class ProgressiveRepBatchNorm(RepBatchNorm):
    """Hands over from one norm to RepBN, in a straight line over steps.

        training:  y = share * first(x) + (1 - share) * rep_batch(x)
                   share = 1 for `warmup` steps, then falls to 0 over `transition`
        else:      y = rep_batch(x)

    Evaluated, the first norm is never used, whatever the share: held-out figures
    mean little before the transition has ended. The counter is one of optimizer
    steps, however many parts a step has. During the warmup the running statistics
    stay as they are. Computed in float32 whatever the input dtype; the output has
    the dtype of the input.

    Reference: Guo et al., 2024, https://arxiv.org/abs/2405.11582.

    Tested against the authors' code for images, and for the schedule of their Llama,
    which counts forward passes, sixteen to a step (`every=16`). Runs of reslab count
    steps however many parts these have, so there `every` is 1.

    Attributes:
      transition: Steps over which the share falls from 1 to 0.
      warmup: Steps before that.
      every: Training calls in a count, which moves after the first of them.
      first: Spec of the norm that training begins with.
      (and those of `RepBatchNorm`)

    Raises:
      ReslabError: If `transition` is below 1 or `warmup` below 0.
    """

    transition: Count = 300
    warmup: Whole = 0
    every: Count = 1
    first: registry.Spec = "layer"

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Maps `x` of shape (batch, ..., channels), as `BatchNorm` does."""
        h = x.astype(statistics_dtype(x.dtype))
        steps = self.counter("steps")
        last = self.rep_batch(h, mask)
        if not self.is_training:
            return last.astype(x.dtype)
        first = registry.make(
            "norms",
            self.first,
            param_dtype=self.param_dtype,
            logical_axis=self.logical_axis,
            name="first",
        )
        counted = self._counted(steps.value)
        mixed = jnp.maximum(counted - self.warmup, 0).astype(h.dtype)
        share = jnp.maximum(self.transition - mixed, 0) / self.transition
        super().write(steps, steps.value + 1)
        return (share * first(h) + (1 - share) * last).astype(x.dtype)

    def _counted(self, calls: jax.Array) -> jax.Array:
        """Returns the count after a number of training calls."""
        return (calls + (self.every - 1)) // self.every

    def write(self, variable: Any, value: jax.Array) -> None:
        """Updates a statistic, but for the warmup."""
        steps = self.get_variable(BATCH_STATS, "steps")
        is_warm = self._counted(steps) < self.warmup
        old = variable.value
        value = value.reshape(old.shape).astype(old.dtype)
        super().write(variable, jnp.where(is_warm, old, value))


build = ProgressiveRepBatchNorm
