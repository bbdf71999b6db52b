"""RepBN: batch normalization and identity, one map at last (Guo et al., 2024)."""

import flax.linen as nn
import jax

from reslab.core.bounds import Real, bounded
from reslab.core.parameters import parameter
from reslab.core.precision import statistics_dtype
from reslab.nn.norms._running import row_like
from reslab.nn.norms.batch import BatchNorm


@bounded
class RepBatchNorm(BatchNorm):
    """Adds a learned share of the input to its batch normalization.

        y = batch(x) + skip * x

    `batch` is `BatchNorm` with gain and bias, `skip` (the paper's eta) one number.
    Evaluated, it is an affine map of each channel, which the next projection takes
    in whole: `reslab transform fuse_norm`. Computed in float32 whatever the input
    dtype; the output has the dtype of the input.

    Reference: Guo et al., 2024, https://arxiv.org/abs/2405.11582.

    Tested against the authors' code for images and, for language, at the tokens that
    are no padding (output and gradient of the input). There gain and skip both start
    at zero, so that the norm first puts out nothing:
    `rep_batch(initial_gain=0.0, initial_skip=0.0)`.

    Attributes:
      initial_gain: Gain of the batch normalization at initialization, unless
        `gain_start` is another than "one".
      initial_skip: Share of the input at initialization.
      (and those of `BatchNorm`)
    """

    initial_gain: Real = 1.0
    initial_skip: Real = 1.0

    @property
    def passes_input(self) -> bool:
        """Returns whether its output grows with its input, at initialization."""
        return self.initial_skip != 0

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Maps `x` of shape (batch, ..., channels), as `BatchNorm` does."""
        return self.rep_batch(x.astype(statistics_dtype(x.dtype)), mask).astype(x.dtype)

    def rep_batch(self, h: jax.Array, mask: jax.Array | None) -> jax.Array:
        """The norm in the dtype of its statistics."""
        start = nn.initializers.constant(self.initial_skip)
        skip = parameter(self, "skip", start, (1,), (None,), self.param_dtype)
        return self.affine(self.normalized(h, mask)) + row_like(skip, h) * h

    def gain_row(self, h: jax.Array) -> jax.Array:
        """The gain of the batch normalization."""
        if self.gain_start != "one":
            return super().gain_row(h)
        offset = 1.0 if self.is_gain_offset else 0.0
        start = nn.initializers.constant(self.initial_gain - offset)
        return offset + self.row("gain", start, h)


build = RepBatchNorm
