"""Waves that follow each other: a series that is made up."""

import dataclasses
from typing import Annotated

import numpy as np

from reslab.core.bounds import Bounds, Count, NonNegative, Seed, bounded
from reslab.data.series import Series


@dataclasses.dataclass(frozen=True)
@bounded
class Waves:
    """Sums of two sines, each variate a delayed one of those before, and noise.

        x[t, i] = sin(2 pi (t - 3 i) / 24) + 0.5 sin(2 pi (t - 3 i) / p) + noise

    with p from 31 to 57, drawn for each series. What a variate does next, others have
    done before.

    Attributes:
      variates: Number of variates.
      steps: Number of steps; the last fifth is held out.
      noise: Standard deviation of the noise.
      seed: Seed of period and noise.
    """

    variates: Count = 4
    steps: Annotated[int, Bounds(least=10, most=10**7)] = 2000
    noise: NonNegative = 0.1
    seed: Seed = 0

    def load(self) -> Series:
        """Makes the series, alike on every machine."""
        random = np.random.default_rng(self.seed)
        period = random.integers(31, 58)
        late = np.arange(self.steps)[:, None] - 3.0 * np.arange(self.variates)
        values = np.sin(2 * np.pi * late / 24) + 0.5 * np.sin(2 * np.pi * late / period)
        values = values + self.noise * random.standard_normal(values.shape)
        names = tuple(f"wave_{i}" for i in range(self.variates))
        return Series(values, names, self.steps // 5)


build = Waves
