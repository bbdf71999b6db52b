"""The inverted forecaster: a token for each variate of a series."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.bounds import Count, bounded
from reslab.core.parameters import parameter
from reslab.core.precision import statistics_dtype
from reslab.models._body import Body
from reslab.models._classifier import Classifier
from reslab.nn.base.norm import mask_for
from reslab.ops.grams import gram


@bounded
class Forecaster(Body):
    """Forecasts all variates of a series at once, with a token for each of them.

        x[i] = (history of variate i - mean) / deviation
        x    = stack(x . kernel + bias)
        y[i] = (norm(x[i]) . head + bias) * deviation + mean

    Mean and deviation are those of the history, of each variate (instance
    normalization); compute is in `dtype`, forecasts are float32. Every variate sees all
    others, as far as the mixer does: S-Mamba has
    `mamba(is_bidirectional=True, taps=2, expansion=1.0)` in post-norm layers.

    Reference: Wang et al., 2024, https://arxiv.org/abs/2403.11144 (S-Mamba); Liu et
    al., 2023, https://arxiv.org/abs/2310.06625 (tokens of variates); Kim et al., 2022,
    RevIN (the normalization, here without parameters).

    Attributes:
      history: Number of steps that are known.
      horizon: Number of steps to forecast.
      variates: Number of variates, for positions.
      (and those of `Body`)
    """

    history: Count = 96
    horizon: Count = 24
    variates: Count = 1

    task: ClassVar[str] = "forecast"

    _epsilon: ClassVar[float] = 1e-5

    @property
    def is_causal(self) -> bool:
        """Variates have no order: each may see all others."""
        return False

    def setup(self):
        """Makes the parts."""
        self.check_depth()

        def own(name, init, shape, axes):
            return parameter(self, name, init, shape, axes, self.param_dtype)

        shape = self.history, self.features
        lecun, zeros = nn.initializers.lecun_normal(), nn.initializers.zeros
        self.embedding = own("embedding", lecun, shape, (None, "embed"))
        self.embedding_bias = own("embedding_bias", zeros, shape[1:], ("embed",))
        self.position_encoding = self.make_position(self.variates)
        self.layers = self.make_stack()
        self.embedding_norm = self.embedding_norm_or_none()
        self.final_norm = self.final_norm_or_none()
        self.head = Classifier(self.horizon, self.param_dtype)

    def normalized(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Histories of variates, scaled, and their means and deviations.

        Args:
          x: (batch, history, variates).

        Returns:
          Arrays (batch, variates, history) and (batch, variates, 1), in the dtype of
          statistics.
        """
        x = jnp.swapaxes(x, 1, 2).astype(statistics_dtype(self.dtype))
        mean = jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(x - mean), axis=-1, keepdims=True)
        deviation = jnp.sqrt(variance + self._epsilon)
        return (x - mean) / deviation, mean, deviation

    def first_grams(self, x: jax.Array) -> dict[str, jax.Array]:
        """X' X / b of the histories that `embedding` reads, by its path."""
        return {"embedding": gram(self.normalized(x)[0])}

    def __call__(self, x: jax.Array) -> jax.Array:
        """Forecasts (batch, horizon, variates) of (batch, history, variates)."""
        x, mean, deviation = self.normalized(x)
        x = x.astype(self.dtype) @ self.embedding.astype(self.dtype)
        x = x + self.embedding_bias.astype(self.dtype)[None, None]
        positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
        segments = jnp.ones_like(positions)
        x = self.position_encoding.embed(x, positions)
        x = self.embedding_norm(x, **mask_for(self.first_norm, segments))
        x, _ = self.layers(x, positions=positions, segments=segments)
        x = self.final_norm(x, **mask_for(self.last("norm"), segments))
        return jnp.swapaxes(self.head(x) * deviation + mean, 1, 2)


build = Forecaster
