"""RMS normalization of each chain separately (Song et al., 2025)."""

from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.bounds import Bounds, Epsilon, bounded
from reslab.core.precision import statistics_dtype
from reslab.nn.base import chains as chains_of
from reslab.nn.norms._features import FeatureNorm


@bounded
class ChainRMSNorm(FeatureNorm):
    """Divides each chain of the features by its own root mean square.

        y_i = x_i / sqrt(mean(x_i**2) + epsilon) * (1 + gain_i)

    The chains are cut in proportion to `chains`, as by the projection `chain`; no
    chain sees one behind it. Statistics and the gain's product are taken in float32
    whatever the input dtype; the output has the dtype of the input.

    Reference: Song et al., 2025, https://arxiv.org/abs/2505.11820. The authors have
    published no code: the golden values are those of the equation.

    Attributes:
      chains: How wide each chain is, relative to the others.
      epsilon: Added to the mean square before the root.
      use_gain: Whether to learn a per-feature gain.
      (and those of `FeatureNorm`)

    Raises:
      ReslabError: If the chains are no positive integers, or do not divide the
        features.
    """

    chains: Annotated[tuple[int, ...], Bounds(least=1)] = (1, 1)
    epsilon: Epsilon = 1e-6
    use_gain: bool = True

    def __post_init__(self):
        chains_of.check("norms 'chain_rms'", self.chains)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalizes `x` of shape (..., features) over every chain.

        Raises:
          ReslabError: If the chains do not divide the features.
        """
        ends = chains_of.ends("norms 'chain_rms'", self.chains, x.shape[-1])
        h = x.astype(statistics_dtype(x.dtype))

        def normalized(part):
            mean_square = jnp.mean(jnp.square(part), axis=-1, keepdims=True)
            return part * jax.lax.rsqrt(mean_square + self.epsilon)

        parts = jnp.split(h, ends[:-1], axis=-1)
        h = jnp.concatenate([normalized(part) for part in parts], axis=-1)
        if self.use_gain:
            h = h * self.gain_row(h)
        return h.astype(x.dtype)


build = ChainRMSNorm
