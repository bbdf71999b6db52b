"""E-values: valid whenever one looks, and the interval that says the same."""

import math

import numpy as np
import pytest
from scipy import integrate, stats

from reslab.study.sequential import bound, compare, evidence


def test_it_is_the_ratio_of_likelihoods_of_t():
    """The likelihood of t under N(0, g) effects, by numerical integration."""
    values = [0.3, 0.9, -0.2, 0.7]
    t = stats.ttest_1samp(values, 0.0).statistic
    scale = 0.8
    under = integrate.quad(
        lambda d: (
            stats.nct.pdf(t, 3, d * math.sqrt(4)) * stats.norm.pdf(d, scale=scale)
        ),
        *(-8, 8),
    )[0]
    wanted = under / stats.t.pdf(t, 3)
    np.testing.assert_allclose(evidence(values, scale), wanted, rtol=1e-6)


def test_chance_rarely_ever_reaches_twenty():
    random = np.random.default_rng(0)
    draws = random.normal(size=(600, 25))
    ever = sum(
        any(evidence(row[:n]) >= 20 for n in range(2, len(row) + 1)) for row in draws
    )
    assert ever / len(draws) <= 0.05


def test_its_expectation_is_one():
    draws = np.random.default_rng(1).normal(size=(4000, 3))
    assert abs(np.mean([evidence(row) for row in draws]) - 1) < 0.1


@pytest.mark.parametrize("count", [6, 12])
def test_the_interval_ends_where_the_evidence_is_enough(count):
    values = np.random.default_rng(2).normal(0.2, 1.0, count)
    half = bound(values, 0.05)
    edge = values - values.mean() + half
    np.testing.assert_allclose(evidence(edge), 20, rtol=1e-9)


def test_few_differences_have_no_interval():
    assert bound([0.1], 0.05) == math.inf == bound([0.1, 0.2], 0.001)
    assert evidence([0.3]) == 1.0
    assert evidence([0.0, 0.0]) == 1.0
    # Equal differences are the limit of nearly equal ones.
    np.testing.assert_allclose(evidence([0.5, 0.5]), evidence([0.5, 0.5 + 1e-9]))
    np.testing.assert_allclose(evidence([0.5, 0.5]), math.sqrt(3))


def test_comparisons_share_the_level():
    random = np.random.default_rng(3)
    samples = {name: dict(enumerate(random.normal(size=9))) for name in "abcd"}
    baselines = {"a": None, "b": "a", "c": "a", "d": "a"}
    found = compare(samples, baselines)
    gaps = [samples["b"][seed] - samples["a"][seed] for seed in range(9)]
    np.testing.assert_allclose(found["b"].p, min(1.0, 3 / evidence(gaps)))
