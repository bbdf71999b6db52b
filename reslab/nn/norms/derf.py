"""Dynamic error function instead of normalization (Chen et al., 2025)."""

import flax.linen as nn
import jax

from reslab.core.bounds import Real, bounded
from reslab.core.precision import statistics_dtype
from reslab.nn.norms._features import AffineNorm, scalar


@bounded
class DynamicErf(AffineNorm):
    """Applies erf to every feature, with one learned slope and one shift.

        y = erf(slope * x + shift) * (1 + gain) + bias

    The error function is the exact one. There are no statistics and no epsilon.
    It is computed in float32 whatever the input dtype; the output has the dtype
    of the input.

    The authors' GPT-2 starts all slopes at one, and has a learned factor on the
    embedding that starts at sqrt(features), which belongs to the model and is not
    here. Their vision recipe decays none of these parameters.

    Reference: Chen et al., 2025, https://arxiv.org/abs/2512.10938.

    Tested against the authors' code.

    Attributes:
      alpha: The slope at initialization; the shift starts at zero.
      (and those of `AffineNorm`)

    >>> import jax.numpy as jnp
    >>> layer = DynamicErf(alpha=1.0)
    >>> x = jnp.array([[0.0, 1.0]])
    >>> y, params = layer.init_with_output(jax.random.key(0), x)
    >>> [round(float(v), 3) for v in y[0]]
    [0.0, 0.843]
    """

    alpha: Real = 0.5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Squashes `x` of shape (..., features)."""
        h = x.astype(statistics_dtype(x.dtype))
        slope = scalar(self, "slope", self.alpha, self.param_dtype)
        shift = scalar(self, "shift", 0.0, self.param_dtype)
        h = jax.lax.erf(slope.astype(h.dtype) * h + shift.astype(h.dtype))
        return self.affine(h).astype(x.dtype)


build = DynamicErf
