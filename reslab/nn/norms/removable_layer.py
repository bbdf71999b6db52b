"""Layer normalization on the way to none: divides by a constant from a step on."""

from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.bounds import Bounds, NonNegative, bounded
from reslab.core.losses import add_loss
from reslab.core.precision import statistics_dtype
from reslab.nn.norms._running import RunningNorm


@bounded
class RemovableLayerNorm(RunningNorm):
    """Is layer normalization before a step, and divides by its average after it.

        y = (x - mean(x)) / d * (1 + gain) + bias
        d = sqrt(var(x) + epsilon)          before step `removed_at`
        d = the running mean of that         from it on

    The running mean over tokens stands still once it divides. Then the map is
    affine: `reslab transform remove_layer_norm` takes it into the next projection.
    The placement `layer_norm_removal` says which norm goes when.

    With `penalty`, training adds to its objective that much times the mean over
    tokens of (d(x) - average d)**2, the average taken for given: tokens that differ
    less in size are hurt less by a constant. It belongs to the final
    norm: one whose placement passes its step adds nothing.

    Statistics are taken in float32 whatever the input dtype; the output has the
    dtype of the input. Padding is not in the averages.

    Reference: Baroni et al., 2025, https://arxiv.org/abs/2507.02559; Heimersheim,
    2024, https://arxiv.org/abs/2409.13710.

    Both forms and the running mean are tested against the authors' code. Not built:
    other constants for the first and the end-of-text token, and a step of its own
    for values. Theirs starts the average from a pass over data, this one from the
    first batch.

    Attributes:
      removed_at: Step from which the norm is a constant; below 0 is never.
      penalty: Factor on the variance of the deviations.
      (and those of `RunningNorm`)
    """

    removed_at: Annotated[int, Bounds(least=-1, words="a step, or -1 for never")] = -1
    penalty: NonNegative = 0.0

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None = None,
        *,
        removed_at: int | jax.Array | None = None,
    ) -> jax.Array:
        """Normalizes `x` of shape (batch, ..., features) over its last axis.

        Args:
          x: Features.
          mask: Which positions count (batch, ...); all if None, which sequences
            may not leave open while training.
          removed_at: Step, instead of the attribute; may be traced.

        Raises:
          ReslabError: While training, if sequences have no mask or the batch has
            one row.
        """
        h = x.astype(statistics_dtype(x.dtype))
        counted = self.weights(h, mask)
        is_final = removed_at is None
        step = jnp.asarray(self.removed_at if is_final else removed_at, jnp.int32)
        average = self.running("deviation", 1.0, (1,))
        updates = self.counter()
        centred = h - jnp.mean(h, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        deviation = jnp.sqrt(variance + self.epsilon)
        is_removed = (updates.value >= step) & (step >= 0)
        if self.is_training:
            mean = jax.lax.stop_gradient(self.mean(deviation, counted))
            self._follow(average, mean, updates.value, is_removed)
            self.write(updates, updates.value + 1)
            if self.penalty and is_final:
                spread = self.mean(jnp.square(deviation - mean), counted)
                add_loss(self, "deviation", self.penalty * jnp.sum(spread))
        constant = average.value.astype(h.dtype).reshape((1,) * h.ndim)
        divisor = jnp.where(is_removed, constant, deviation)
        return self.affine(centred / divisor).astype(x.dtype)

    def _follow(self, average, mean, updates, is_removed):
        old = average.value
        new = mean.reshape(old.shape).astype(old.dtype)
        kept = self.momentum * old + (1 - self.momentum) * new
        followed = jnp.where(updates == 0, new, kept)
        self.write(average, jnp.where(is_removed, old, followed))


build = RemovableLayerNorm
