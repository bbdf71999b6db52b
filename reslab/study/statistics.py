"""Statistics of a study: intervals, Welch's t-test, Holm's correction."""

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


class Comparison(NamedTuple):
    """Difference of a sample from its baseline.

    Attributes:
      difference: Mean of the sample minus mean of the baseline.
      low: Lower end of the 95% interval of the difference (Welch).
      high: Its upper end.
      p: Two-sided p-value of Welch's t-test.

    `low`, `high` and `p` are None where the samples cannot tell.
    """

    difference: float
    low: float | None
    high: float | None
    p: float | None


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


def compare(values: Sequence[float], baseline: Sequence[float]) -> Comparison | None:
    """Welch's two-sided t-test of two samples, and the interval of the difference.

        t  = (mean_a - mean_b) / sqrt(v_a + v_b),    v = sd**2 / n
        df = (v_a + v_b)**2 / (v_a**2 / (n_a - 1) + v_b**2 / (n_b - 1))

    Where neither sample varies, equal means have p = 1 and a difference of exactly
    0; different means have no p, since nothing says how much chance would move them.

    Reference: Welch, 1947, https://doi.org/10.1093/biomet/34.1-2.28.

    Args:
      values: The sample.
      baseline: The sample that it is held against.

    Returns:
      The comparison, without interval and p below two values in either sample;
      None if either is empty.
    """
    if not values or not baseline:
        return None
    a, b = summarize(values), summarize(baseline)
    assert a.mean is not None and b.mean is not None
    difference = a.mean - b.mean
    if a.deviation is None or b.deviation is None:
        return Comparison(difference, None, None, None)
    of_a, of_b = a.deviation**2 / a.count, b.deviation**2 / b.count
    if of_a + of_b == 0.0:
        if difference == 0.0:
            return Comparison(0.0, 0.0, 0.0, 1.0)
        return Comparison(difference, None, None, None)
    # Shares: squares of tiny variances would underflow.
    share_a, share_b = of_a / (of_a + of_b), of_b / (of_a + of_b)
    freedom = 1.0 / (share_a**2 / (a.count - 1) + share_b**2 / (b.count - 1))
    error = math.sqrt(of_a + of_b)
    p = 2.0 * float(special.stdtr(freedom, -abs(difference) / error))
    half = _quantile(freedom) * error
    return Comparison(difference, difference - half, difference + half, min(p, 1.0))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction over one family of tests.

    The i-th smallest of m p-values is multiplied by m - i + 1, made monotone and
    bounded by 1. Comparisons without a p-value are not tests: they stay None and do
    not count in m.

    Reference: Holm, 1979, https://www.jstor.org/stable/4615733.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    tested = [(p, index) for index, p in enumerate(p_values) if p is not None]
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(sorted(tested)):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        corrected[index] = largest
    return corrected


def _quantile(freedom: float) -> float:
    """The two-sided 95% point of Student's t."""
    return float(special.stdtrit(freedom, 0.5 + CONFIDENCE / 2))
