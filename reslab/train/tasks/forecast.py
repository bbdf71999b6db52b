"""Forecasts of series of several variates."""

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from reslab.core import registry
from reslab.core.model_state import BATCH_STATS, ModelState
from reslab.core.randomness import training_keys
from reslab.data.series import SeriesSet, Windows, load_series
from reslab.train.tasks import Batch, Headline, Sums
from reslab.train.tasks._examples import InputTask


class Forecast(InputTask):
    """Windows of a series; mean squared and mean absolute error of scaled values.

    `data.length` is the history, `data.source` of the family `series`, and the horizon
    is the model's.

    Args:
      config: The resolved config.
    """

    unit: ClassVar[str] = "windows"
    headline: ClassVar[Headline] = Headline("loss", "mean squared error")
    source_family: ClassVar[str] = "series"
    input_name: ClassVar[str] = "history"

    @property
    def _horizon(self) -> int:
        model = registry.parse(self._config.model.name)
        build = registry.module("models", model.name).build
        return model.arguments.get("horizon", getattr(build, "horizon", 1))

    @functools.cached_property
    def series(self) -> SeriesSet:
        """The series, in memory."""
        data = self._config.data
        return load_series(data.source, data.length, self._horizon)

    def model_fields(self) -> dict[str, Any]:
        """Length of the history, and number of variates."""
        return {
            "history": self._config.data.length,
            "variates": len(self.series.names),
        }

    def _shape(self, steps: int) -> tuple[int, int]:
        return steps, len(self.series.names)

    def batch_shapes(self, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a batch."""
        known = (rows, *self._shape(self._config.data.length))
        wanted = (rows, *self._shape(self._horizon))
        return {
            "history": jax.ShapeDtypeStruct(known, jnp.float32),
            "target": jax.ShapeDtypeStruct(wanted, jnp.float32),
            "loss_mask": jax.ShapeDtypeStruct((rows,), jnp.bool_),
        }

    def record(self) -> dict[str, Any]:
        """Digest and size of the series."""
        series = self.series
        return {
            "sha256": series.sha256,
            "windows": len(series.train) + len(series.test),
            "variates": list(series.names),
            "bytes": series.train.values.nbytes + series.test.values.nbytes,
        }

    def train_examples(self) -> Windows:
        """Windows of the first part."""
        return self.series.train

    def held_out_examples(self) -> Windows:
        """Windows of the last part."""
        return self.series.test

    def loss_sums(
        self,
        model: Any,
        variables: ModelState,
        batch: Batch,
        *,
        is_training: bool = False,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, Sums, ModelState]:
        """Adds up the mean squared errors of the windows that count.

        Args:
          model: The model.
          variables: Its parameters and state.
          batch: `history`, `target` and `loss_mask`.
          is_training: Whether norms over a batch see this one.
          key: Random key, for parts that draw numbers while training.

        Returns:
          The objective; the sums `squared`, `absolute` and `windows`; and the
          statistics written.
        """
        outcome: Any = model.apply(
            variables,
            batch["history"],
            mutable=[BATCH_STATS] if is_training else [],
            rngs=training_keys(key),
        )
        forecast, written = outcome
        error = forecast - batch["target"].astype(forecast.dtype)
        mask = batch["loss_mask"].astype(error.dtype)
        squared = jnp.sum(jnp.mean(jnp.square(error), axis=(1, 2)) * mask)
        sums = {
            "squared": squared,
            "absolute": jnp.sum(jnp.mean(jnp.abs(error), axis=(1, 2)) * mask),
            "windows": jnp.sum(mask),
        }
        return squared, sums, written.get(BATCH_STATS, {})

    def tokens(self, model: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Masks of the variates: all of a window count, and none begins a document."""
        mask = batch["loss_mask"].astype(bool)[:, None]
        shape = mask.shape[0], batch["history"].shape[-1]
        is_counted = jnp.broadcast_to(mask, shape)
        return is_counted, jnp.zeros_like(is_counted)

    def metrics(self, sums: Mapping[str, Any]) -> dict[str, Any]:
        """Mean squared error, and mean absolute error."""
        return {
            "loss": sums["squared"] / sums["windows"],
            "mae": sums["absolute"] / sums["windows"],
        }


build = Forecast
