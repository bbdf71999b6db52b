"""Summaries against scipy."""

import numpy as np
from scipy import stats

from reslab.study.statistics import summarize

A = [2.013, 2.021, 1.998, 2.034, 2.007]


def test_the_summary_is_scipys():
    got = summarize(A)
    interval = stats.t.interval(0.95, 4, np.mean(A), stats.sem(A))
    assert got.count == 5
    np.testing.assert_allclose(got.mean, np.mean(A), rtol=1e-14)
    np.testing.assert_allclose(got.deviation, np.std(A, ddof=1), rtol=1e-14)
    np.testing.assert_allclose((got.low, got.high), interval, rtol=1e-12)


def test_few_values_have_no_spread():
    assert summarize([2.0]) == (1, 2.0, None, None, None)
    assert summarize([]) == (0, None, None, None, None)
