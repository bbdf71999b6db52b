"""Comparisons with a baseline: against scipy, and against chance."""

import math

import numpy as np
import pytest
from scipy import stats

from reslab.study import dunnett
from reslab.study.family import compare, spread_of


def _samples(values, first=0):
    return {
        name: dict(enumerate(one, first))
        for name, one in zip("abcdefghijk", values, strict=False)
    }


def _against_first(samples):
    first = next(iter(samples))
    return {name: None if name == first else first for name in samples}


@pytest.mark.parametrize("counts", [(3, 3, 3, 3), (15, 5, 5, 5, 5, 5), (4, 3, 7, 2)])
def test_the_distribution_is_dunnetts(counts):
    random = np.random.default_rng(0)
    samples = [random.normal(0.5 * (i == 1), 1, n) for i, n in enumerate(counts)]
    wanted = stats.dunnett(*samples[1:], control=samples[0], rng=1)
    shares = [(1 / counts[0]) / (1 / counts[0] + 1 / n) for n in counts[1:]]
    groups = (tuple(map(math.sqrt, shares)),)
    freedom = sum(counts) - len(counts)
    found = [dunnett.exceeding(abs(t), groups, freedom) for t in wanted.statistic]
    np.testing.assert_allclose(found, wanted.pvalue, atol=3e-4)  # scipy's is sampled.
    low = wanted.confidence_interval(0.95).low
    pooled = math.sqrt(
        sum(((s - s.mean()) ** 2).sum() for s in samples)
        / freedom
        * (1 / counts[0] + 1 / counts[1])
    )
    half = samples[1].mean() - samples[0].mean() - low[0]
    critical = dunnett.critical(0.05, groups, freedom)
    np.testing.assert_allclose(critical, half / pooled, rtol=2e-3)


def test_of_one_sided_tests_as_well():
    groups, freedom = ((math.sqrt(0.5),) * 4,), 12
    random = np.random.default_rng(2)
    draws = random.normal(size=(400_000, 5))
    scale = np.sqrt(random.chisquare(freedom, len(draws)) / freedom)
    largest = ((draws[:, 1:] - draws[:, :1]) / math.sqrt(2)).max(1) / scale
    found = dunnett.exceeding(2.0, groups, freedom, is_two_sided=False)
    np.testing.assert_allclose(found, np.mean(largest > 2.0), atol=1.5e-3)


def test_several_baselines_are_one_family():
    one = dunnett.exceeding(2.5, ((0.7, 0.7),), 10)
    both = dunnett.exceeding(2.5, ((0.7, 0.7), (0.7, 0.7)), 10)
    assert one < both < 2 * one


def test_without_shared_seeds_it_is_dunnett():
    random = np.random.default_rng(10)
    values = [random.normal(0.3 * i, 1.0, 4) for i in range(4)]
    samples = {
        name: dict(enumerate(one, 10 * i))
        for i, (name, one) in enumerate(zip("abcd", values, strict=True))
    }
    found = compare(samples, _against_first(samples))
    wanted = stats.dunnett(*values[1:], control=values[0], rng=1)
    got = [found[name].p for name in "bcd"]
    np.testing.assert_allclose(got, wanted.pvalue, atol=3e-4)
    spread = spread_of(samples)
    pooled = np.mean([np.var(one, ddof=1) for one in values])
    np.testing.assert_allclose((spread.noise, spread.freedom), (pooled, 12))


def test_two_cases_of_the_same_seeds_are_a_paired_test():
    random = np.random.default_rng(4)
    blocks = random.normal(0, 3.0, 5)
    one, other = (blocks + random.normal(0, 1.0, 5) for _ in range(2))
    samples = _samples([one, other])
    found = compare(samples, _against_first(samples))["b"]
    wanted = stats.ttest_rel(other, one)
    np.testing.assert_allclose(found.p, wanted.pvalue, rtol=1e-6)
    interval = wanted.confidence_interval(0.95)
    np.testing.assert_allclose((found.low, found.high), interval, rtol=1e-6)


def test_more_seeds_of_the_baseline_narrow_the_intervals():
    random = np.random.default_rng(5)
    baseline = random.normal(0, 1, 12)
    cases = random.normal(0, 1, (3, 4))
    few = _samples([baseline[:4], *cases])
    many = _samples([baseline, *cases])
    width = {
        name: [c.high - c.low for c in compare(s, _against_first(s)).values()]
        for name, s in (("few", few), ("many", many))
    }
    assert all(m < f for m, f in zip(width["many"], width["few"], strict=True))


def test_a_case_with_a_larger_spread_takes_its_own():
    random = np.random.default_rng(6)
    values = random.normal(0, [[1], [1], [1], [1], [1], [12]], (6, 5))
    samples = _samples(values)
    found = compare(samples, _against_first(samples))
    assert not found["f"].is_pooled
    # Cochran's p of equal counts is the t test with the smaller freedom.
    t = stats.ttest_ind(values[5], values[0], equal_var=False).statistic
    wanted = min(1.0, 5 * 2 * stats.t.sf(abs(t), 4))
    np.testing.assert_allclose(found["f"].p, wanted, rtol=1e-6)


def test_equivalence_is_two_one_sided_tests():
    random = np.random.default_rng(7)
    one, other = random.normal(2.0, 0.01, (2, 8))
    samples = _samples([one, other])
    found = compare(samples, _against_first(samples), margin=0.02)["b"]
    gap = other - one
    error = gap.std(ddof=1) / math.sqrt(8)
    wanted = stats.t.sf((0.02 - abs(gap.mean())) / error, 7)
    np.testing.assert_allclose(found.equivalence, wanted, rtol=1e-6)
    far = compare(samples, _against_first(samples), margin=1e-4)["b"]
    assert far.equivalence > 0.3


def test_too_few_figures_have_a_difference_but_no_p():
    one = compare({"a": {0: 2.0}, "b": {0: 2.5}}, {"a": None, "b": "a"})["b"]
    assert (one.difference, one.low, one.high, one.p) == (0.5, None, None, None)
    assert not compare({"a": {0: 2.0}, "b": {}}, {"a": None, "b": "a"})
    # A case of one seed neither has a p nor takes part in the others'.
    samples = _samples([[2.0, 2.1, 1.9], [2.2, 2.1, 2.0], [3.0]])
    found = compare(samples, _against_first(samples))
    del samples["c"]
    assert found["c"].p is None
    assert found["b"] == compare(samples, _against_first(samples))["b"]


def test_no_variance_at_all():
    samples = _samples([[2.0, 2.0], [2.0, 2.0], [3.0, 3.0]])
    found = compare(samples, _against_first(samples))
    assert (found["b"].difference, found["b"].p) == (0.0, 1.0)
    assert (found["c"].difference, found["c"].p) == (1.0, None)


def test_cases_that_never_vary_beside_one_that_does():
    samples = _samples([[0.0] * 3, [0.0] * 3, [0.3, 0.35, 0.4]])
    found = compare(samples, _against_first(samples), margin=0.01)["b"]
    assert (found.difference, found.p, found.equivalence) == (0.0, 1.0, 0.0)


def test_the_units_do_not_matter():
    random = np.random.default_rng(8)
    values = random.normal(2.0, 0.1, (4, 5))
    for scale in (1e-6, 1.0, 1e6):
        samples = _samples(values * scale)
        p = [c.p for c in compare(samples, _against_first(samples)).values()]
        if scale == 1e-6:
            first = p
        np.testing.assert_allclose(p, first, rtol=1e-6)


def false_findings(cases, seeds, baseline_seeds, *, spread, block, wild, repeats):
    """Share of tables without any effect in which one is found."""
    random = np.random.default_rng([cases, seeds, baseline_seeds, round(10 * spread)])
    count = max(seeds, baseline_seeds)
    found = 0
    for _ in range(repeats):
        deviations = np.exp(random.normal(0, spread, cases))
        deviations[-1] *= wild
        values = math.sqrt(1 - block) * random.normal(size=(cases, count))
        values *= deviations[:, None]
        values += math.sqrt(block) * random.normal(size=count)
        samples = _samples([values[0, :baseline_seeds], *values[1:, :seeds]])
        compared = compare(samples, _against_first(samples)).values()
        for one in compared:  # The interval says the same as p.
            assert (one.p < 0.05) == (one.low > 0 or one.high < 0)
        found += min(one.p for one in compared) < 0.05
    return found / repeats


TABLES = {
    "alike": (6, 3, 3, 0.0, 0.0, 1.0),
    "seeds": (6, 3, 6, 0.0, 0.5, 1.0),
    "unlike": (6, 3, 3, 0.6, 0.0, 1.0),
    "unlike, many seeds of the baseline": (6, 5, 10, 0.6, 0.2, 1.0),
    "one wild": (6, 5, 5, 0.0, 0.0, 5.0),
}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_chance_is_found_in_at_most_a_twentieth_of_tables(table):
    *sizes, spread, block, wild = table
    repeats = 300
    share = false_findings(*sizes, spread=spread, block=block, wild=wild, repeats=300)
    assert share <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / repeats)


@pytest.mark.exhaustive
@pytest.mark.parametrize("cases", [2, 4, 11])
@pytest.mark.parametrize("seeds, baseline", [(3, 3), (3, 6), (5, 5), (5, 10)])
@pytest.mark.parametrize(
    "spread, block, wild",
    [(0, 0, 1), (0, 0.5, 1), (0.3, 0.2, 1), (0.6, 0, 1), (0, 0, 5)],
)
def test_chance_with_many_repeats(cases, seeds, baseline, spread, block, wild):
    share = false_findings(
        *(cases, seeds, baseline), spread=spread, block=block, wild=wild, repeats=4000
    )
    assert share <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 4000)
