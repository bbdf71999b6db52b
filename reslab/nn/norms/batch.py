"""Batch normalization with a mask and running statistics (Ioffe & Szegedy, 2015)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.precision import statistics_dtype
from reslab.nn.norms._running import RunningNorm, row_like, unbiased


class BatchNorm(RunningNorm):
    """Normalizes every channel over all positions of a batch that count.

        training:  y = (x - mean) / sqrt(var + epsilon) * (1 + gain) + bias
                   running <- momentum * running + (1 - momentum) * batch
        else:      the same with the running mean and variance

    The variance that divides is biased, the one that runs along unbiased, as in
    PyTorch. Padding is left out of the statistics and passes unchanged but for gain
    and bias. Statistics are taken in float32 whatever the input dtype; the output
    has the dtype of the input. Of several devices the batch is one.

    Reference: Ioffe & Szegedy, 2015, https://arxiv.org/abs/1502.03167, Algorithm 1;
    the mask follows SLAB (Guo et al., 2024, https://arxiv.org/abs/2405.11582).

    Tested against Flax's and, through `rep_batch`, against SLAB's code, which is
    PyTorch's.

    Attributes:
      (those of `RunningNorm`)

    >>> layer = BatchNorm()
    >>> x = jnp.array([[1.0], [3.0]])
    >>> variables = layer.init(jax.random.key(0), x)
    >>> y, _ = layer.apply(variables, x, mutable="batch_stats")
    >>> [round(float(v), 3) for v in y[:, 0]]
    [-1.0, 1.0]
    """

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Normalizes `x` (batch, ..., channels); `mask` is as in `weights`."""
        h = x.astype(statistics_dtype(x.dtype))
        return self.affine(self.normalized(h, mask)).astype(x.dtype)

    def normalized(self, h: jax.Array, mask: jax.Array | None) -> jax.Array:
        """Normalizes without gain and bias, and updates the running statistics."""
        counted = self.weights(h, mask)
        width = h.shape[-1:]
        running_mean = self.running("mean", 0.0, width)
        running_variance = self.running("variance", 1.0, width)
        updates = self.counter()
        if self.is_training:
            # Excluded positions may hold any value, also infinite, and in the backward
            # pass.
            seen = jnp.where(counted, h, 0)
            mean = self.mean(seen, counted)
            variance = self.mean(jnp.square(seen - mean), counted)
            self.write_running(running_mean, mean)
            self.write_running(running_variance, unbiased(variance, counted))
            self.write(updates, updates.value + 1)
            y = (seen - mean) * jax.lax.rsqrt(variance + self.epsilon)
            return jnp.where(counted, y, h)
        mean = row_like(running_mean.value, h)
        return (h - mean) * jax.lax.rsqrt(
            row_like(running_variance.value, h) + self.epsilon
        )


build = BatchNorm
