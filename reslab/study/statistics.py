"""Summaries of samples."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

CONFIDENCE = 0.95


class Summary(NamedTuple):
    """Summary of a sample.

    Attributes:
      count: Number of values.
      mean: Their mean; None without values.
      deviation: Standard deviation with `count - 1` in the denominator; None
        below two values.
      low: Lower end of the 95% t interval of the mean; None below two values.
      high: Its upper end.
    """

    count: int
    mean: float | None
    deviation: float | None
    low: float | None
    high: float | None


def summarize(values: Sequence[float]) -> Summary:
    """Count, mean, standard deviation and the 95% t interval of the mean.

        mean +- t(0.975, n - 1) * sd / sqrt(n)

    >>> [round(v, 3) for v in summarize([1.0, 2.0, 3.0])]
    [3, 2.0, 1.0, -0.484, 4.484]
    """
    count = len(values)
    if count == 0:
        return Summary(0, None, None, None, None)
    mean = math.fsum(values) / count
    if count == 1:
        return Summary(1, mean, None, None, None)
    # Equal values give 0, not the rounding error of their mean.
    deviation = float(np.std(values, ddof=1)) if min(values) < max(values) else 0.0
    half = _quantile(count - 1) * deviation / math.sqrt(count)
    return Summary(count, mean, deviation, mean - half, mean + half)


def _quantile(freedom: float) -> float:
    """The two-sided 95% point of Student's t."""
    return float(special.stdtrit(freedom, 0.5 + CONFIDENCE / 2))
