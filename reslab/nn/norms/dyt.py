"""Dynamic tanh instead of normalization (Zhu et al., 2025)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.bounds import Real, bounded
from reslab.core.precision import statistics_dtype
from reslab.nn.norms._features import AffineNorm, scalar


@bounded
class DynamicTanh(AffineNorm):
    """Applies tanh to every feature, with one learned slope.

        y = tanh(slope * x) * (1 + gain) + bias

    There are no statistics and no epsilon. It is computed in float32 whatever the
    input dtype; the output has the dtype of the input.

    The residual stream stays unbounded, and the starting slope matters the more
    the wider the model. The paper's starts for language models, before attention
    and elsewhere: width 1024 1.0 and 1.0, 2048 1.0 and 0.5, 4096 0.8 and 0.2, 8192
    0.2 and 0.05. Its language models have no bias, and a learned factor on the
    embedding that starts at sqrt(features), which belongs to the model and is not
    here. Its vision recipe decays none of these parameters; what the language
    recipe decays was not checked.

    Reference: Zhu et al., 2025, https://arxiv.org/abs/2503.10622.

    Tested against the authors' code.

    Attributes:
      alpha: The slope at initialization.
      (and those of `AffineNorm`)

    >>> layer = DynamicTanh(alpha=1.0)
    >>> x = jnp.array([[0.0, 1.0]])
    >>> y, params = layer.init_with_output(jax.random.key(0), x)
    >>> [round(float(v), 3) for v in y[0]]
    [0.0, 0.762]
    """

    alpha: Real = 0.5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Squashes `x` of shape (..., features)."""
        h = x.astype(statistics_dtype(x.dtype))
        slope = scalar(self, "slope", self.alpha, self.param_dtype)
        h = jnp.tanh(slope.astype(h.dtype) * h)
        return self.affine(h).astype(x.dtype)


build = DynamicTanh
