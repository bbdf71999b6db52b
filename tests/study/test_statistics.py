"""Welch, intervals and Holm against scipy, and against the textbook's arithmetic."""

import math

import numpy as np
import pytest
from scipy import stats

from reslab.study.statistics import compare, holm, summarize

A = [2.013, 2.021, 1.998, 2.034, 2.007]
B = [2.052, 2.049, 2.071]


def test_the_summary_is_scipys():
    got = summarize(A)
    interval = stats.t.interval(0.95, 4, np.mean(A), stats.sem(A))
    assert got.count == 5
    np.testing.assert_allclose(got.mean, np.mean(A), rtol=1e-14)
    np.testing.assert_allclose(got.deviation, np.std(A, ddof=1), rtol=1e-14)
    np.testing.assert_allclose((got.low, got.high), interval, rtol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e6])
@pytest.mark.parametrize("one, other", [(A, B), (B, A), (A, A[::-1]), (B, A[:2])])
def test_the_comparison_is_scipys(one, other, scale):
    one, other = [scale * v for v in one], [scale * v for v in other]
    got = compare(one, other)
    wanted = stats.ttest_ind(one, other, equal_var=False)
    interval = wanted.confidence_interval(0.95)
    np.testing.assert_allclose(got.p, wanted.pvalue, rtol=1e-10)
    np.testing.assert_allclose(got.low, interval.low, rtol=1e-10)
    np.testing.assert_allclose(got.high, interval.high, rtol=1e-10)


def test_a_sample_without_variance_against_one_with():
    got = compare([2.0, 2.0], A)
    # From the moments: on the values, scipy warns that one sample is constant.
    moments = (2.0, 0.0, 2, np.mean(A), np.std(A, ddof=1), len(A))
    wanted = stats.ttest_ind_from_stats(*moments, equal_var=False)
    np.testing.assert_allclose(got.p, wanted.pvalue, rtol=1e-10)


def test_no_variance_at_all():
    assert compare([2.0, 2.0], [2.0, 2.0]) == (0.0, 0.0, 0.0, 1.0)
    different = compare([2.0, 2.0], [3.0, 3.0, 3.0])
    assert different == (-1.0, None, None, None)


def test_one_value_has_a_difference_but_no_p():
    assert summarize([2.0]) == (1, 2.0, None, None, None)
    assert summarize([]) == (0, None, None, None, None)
    assert compare([2.5], [2.0, 2.0]) == (0.5, None, None, None)
    assert compare([], A) is None


def _holm_by_definition(values):
    """Each p becomes the largest of (m - j) p_(j) over the ranks up to its own."""
    order = sorted(values)
    return [
        min(1.0, max((len(order) - j) * order[j] for j in range(order.index(p) + 1)))
        for p in values
    ]


@pytest.mark.parametrize(
    "values",
    [[0.01, 0.04, 0.03, 0.005], [0.5, 0.6, 0.7], [0.02], [1.0, 1e-12, 0.04, 0.01]],
)
def test_holm_is_its_definition(values):
    np.testing.assert_allclose(holm(values), _holm_by_definition(values), rtol=1e-14)


def test_holm_of_a_known_family():
    # By hand: 5 x 0.01, 4 x 0.02, 3 x 0.03, and never below the one before.
    got = holm([0.01, 0.02, 0.03, 0.04, 0.05])
    np.testing.assert_allclose(got, [0.05, 0.08, 0.09, 0.09, 0.09], rtol=1e-14)


def test_holm_counts_tests_only():
    assert holm([0.01, None, 0.04]) == [0.02, None, 0.04]
    assert holm([]) == []


def test_chance_is_found_significant_about_as_often_as_promised():
    random = np.random.default_rng(0)
    found = 0
    for _ in range(1000):
        groups = random.normal(2.0, 0.01, (4, 4)).tolist()
        values = holm([compare(group, groups[0]).p for group in groups[1:]])
        found += min(values) < 0.05
    # Three standard deviations above the 5% that Holm bounds the family by.
    assert found / 1000 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1000)
