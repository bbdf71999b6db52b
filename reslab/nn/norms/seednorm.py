"""SeeDNorm: RMS normalization with a gain per token (Cai et al., 2025)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.bounds import Count, Epsilon, bounded
from reslab.core.errors import ReslabError
from reslab.core.precision import statistics_dtype
from reslab.nn.norms._features import FeatureNorm


@bounded
class SelfRescaledNorm(FeatureNorm):
    """Divides by the root mean square and rescales by what the token itself says.

        y = ((1 + gain) + tanh(x . direction) * dynamic_gain)
            * x / sqrt(mean(x**2) + epsilon)

    The product x . direction uses the raw features, so their size, which
    normalization removes, comes back through the gain. With several heads it is
    taken in `heads` contiguous chunks, and each moves the gains of its own
    chunk; the root mean square is over the whole vector. The paper's gamma,
    alpha and beta are 1 + `gain`, `dynamic_gain` and `direction`. `direction`
    starts at zero and `dynamic_gain` at one: at initialization this is `rms`, and
    the gradient reaches `direction` first. Everything is computed in float32
    whatever the input dtype; the output has the dtype of the input.

    The paper decays `dynamic_gain` and `direction`, for stability (seen in notes
    on the paper only). A config that decays matrices alone does so with the group
    `("(dynamic_gain|direction)$", {})` put first. Language models of the paper
    have one head, vision models more. Left out of the vision recipe: dropout of
    the dynamic term and the division of the product by the width, whose details
    could not be verified.

    Reference: Cai et al., 2025, https://arxiv.org/abs/2510.22777.

    No code of the authors was found; this is tested against a transcription of a
    third party's implementation (a fork of Megatron-Core), which adds 1e-5.

    Attributes:
      heads: Number of chunks with a product of their own.
      epsilon: Added to the mean square before the root.
      (and those of `FeatureNorm`)

    >>> layer = SelfRescaledNorm(heads=2)
    >>> x = jnp.full((2, 4), 3.0)
    >>> y, params = layer.init_with_output(jax.random.key(0), x)
    >>> [round(float(v), 3) for v in y[0]]
    [1.0, 1.0, 1.0, 1.0]
    """

    heads: Count = 1
    epsilon: Epsilon = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalizes `x` of shape (..., features) over its last axis.

        Raises:
          ReslabError: If the heads do not divide the features.
        """
        features = x.shape[-1]
        if features % self.heads:
            raise ReslabError(
                "norms 'seednorm': heads",
                expected=f"a divisor of the {features} features",
                got=f"{self.heads}",
            )
        h = x.astype(statistics_dtype(x.dtype))
        direction = self.row("direction", nn.initializers.zeros, h)
        dynamic_gain = self.row("dynamic_gain", nn.initializers.ones, h)
        chunks = (h * direction).reshape(*h.shape[:-1], self.heads, -1)
        seen = jnp.repeat(
            jnp.tanh(jnp.sum(chunks, axis=-1)), features // self.heads, axis=-1
        )
        mean_square = jnp.mean(jnp.square(h), axis=-1, keepdims=True)
        h = h * jax.lax.rsqrt(mean_square + self.epsilon)
        h = h * (self.gain_row(h) + seen * dynamic_gain)
        return h.astype(x.dtype)


build = SelfRescaledNorm
