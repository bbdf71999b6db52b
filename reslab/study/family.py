"""Cases of a table against their baselines: one spread, seeds as blocks.

    y[case, seed] = mean[case] + block[seed] + noise,    sd(noise) the same in all cases

Means and their covariance are generalized least squares with the two variances that
the table shows; comparisons are Dunnett's, all of a table one family. Where a case or
its baseline spreads more than the rest, or spreads differ altogether (an F test of each
case, Bartlett's test of all, at 10%), a comparison takes the two cases' own spreads, by
Cochran's approximation, with Bonferroni's correction.

References: Dunnett, 1955, https://doi.org/10.1080/01621459.1955.10501294; Bartlett,
1937, https://doi.org/10.1098/rspa.1937.0109; Cochran, 1964,
https://doi.org/10.2307/2527826; Schuirmann, 1987,
https://doi.org/10.1007/BF01068419 (equivalence by two one-sided tests); Henderson,
1953, https://doi.org/10.2307/3001853 (variances, method 3).
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
from scipy import special, stats

from reslab.study import dunnett

LEVEL = 0.05
_GUARD = 0.1
# Figures by seed.
Sample = Mapping[int, float]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Difference of a case from its baseline.

    Attributes:
      difference: The case's mean minus the baseline's.
      low: Lower end of the interval of the difference; all intervals of a table hold
        together with a probability of 95%.
      high: Its upper end.
      p: Two-sided p-value, corrected over all comparisons of the table.
      equivalence: P-value against a difference of `margin` or more, corrected likewise;
        None without a margin.
      is_pooled: Whether one spread is taken for all cases.

    `low`, `high` and `p` are None where the figures cannot tell.
    """

    difference: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    equivalence: float | None = None
    is_pooled: bool = True


@dataclasses.dataclass(frozen=True)
class Spread:
    """Variances that a table shows.

    Attributes:
      noise: Variance within a seed.
      seed: Variance that all cases of a seed share.
      freedom: Degrees of freedom of `noise`.
    """

    noise: float
    seed: float
    freedom: int

    @property
    def deviation(self) -> float:
        """Standard deviation within a seed."""
        return math.sqrt(self.noise)

    @property
    def correlation(self) -> float:
        """Correlation of two cases with the same seed."""
        total = self.noise + self.seed
        return self.seed / total if total else 0.0


def compare(
    samples: Mapping[str, Sample],
    baselines: Mapping[str, str | None],
    *,
    against: Mapping[str, Sample] | None = None,
    margin: float | None = None,
    level: float = LEVEL,
) -> dict[str, Comparison]:
    """Compares every case of a table with its baseline.

    Args:
      samples: For every case its figures by seed.
      baselines: For every case the one that it is held against, or None.
      against: For a case the figures of its baseline, by the same seeds as in
        `samples`, where they are others: at the time at which the case is compared.
      margin: Difference below which cases are as good as each other.
      level: Probability of any false finding in the table.

    Returns:
      The comparisons of the cases that have a baseline, and figures on both sides;
      without interval and p where one of them has a single figure.
    """
    others = {
        case: (against or {}).get(case, samples.get(base, {}))
        for case, base in baselines.items()
        if base is not None
    }
    found = {
        case: Comparison(_mean(samples[case]) - _mean(other))
        for case, other in others.items()
        if samples.get(case) and other
    }
    tested = {
        case: base
        for case, base in baselines.items()
        if base is not None
        and case in found
        and min(len(samples[case]), len(others[case])) > 1
        and samples[base].keys() == others[case].keys()
    }
    used = {name: samples[name] for pair in tested.items() for name in pair}
    spread = spread_of(used)
    if spread is None:
        return found
    if spread.noise == 0.0:
        # No case varies: nothing says how much chance would move them.
        alike = [case for case in tested if found[case].difference == 0.0]
        none = None if margin is None else 0.0
        return found | {case: Comparison(0.0, 0.0, 0.0, 1.0, none) for case in alike}
    weights, between = _contrasts(used, tested, spread)
    groups = dunnett.loads(between, list(tested.values()))
    critical = dunnett.critical(level, groups, spread.freedom)
    unlike = _unlike(used)
    for row, (case, base) in enumerate(tested.items()):
        if unlike & {case, base}:
            pair = samples[case], others[case]
            found[case] = _own(*pair, len(tested), margin, level)
            continue
        figures = used | {base: others[case]}
        difference = float(weights[row] @ _columns(figures)[0])
        error = math.sqrt(between[row, row])
        size = abs(difference)

        def p_value(distance: float, is_two_sided: bool, error: float = error) -> float:
            return dunnett.exceeding(
                distance / error, groups, spread.freedom, is_two_sided=is_two_sided
            )

        equivalence = None
        if margin is not None:
            equivalence = p_value(margin - size, False) if size < margin else 1.0
        half = critical * error
        found[case] = Comparison(
            difference,
            difference - half,
            difference + half,
            p_value(size, True),
            equivalence,
        )
    return found


def spread_of(samples: Mapping[str, Sample]) -> Spread | None:
    """The variances of a table; None where nothing repeats.

    Seeds are blocks where cases share them. Their variance is estimated by
    Henderson's third method, and is not below 0.
    """
    values, cases, seeds = _columns(samples)
    count = len(values)
    if not count:
        return None
    one_way, free = _residual(cases, values)
    within, blocked = _residual(np.hstack([cases, seeds]), values)
    if blocked <= 0 or free == blocked:
        return Spread(one_way / free, 0.0, free) if free > 0 else None
    noise = within / blocked
    projected = seeds - cases @ ((cases.T @ seeds) / cases.sum(0)[:, None])
    scale = float((projected * seeds).sum())
    seed = max(0.0, (one_way - within - (free - blocked) * noise) / scale)
    if noise <= 1e-24 * float(values @ values):  # Rounding of equal values.
        noise = 0.0
    return Spread(noise, seed, blocked)


def _columns(
    samples: Mapping[str, Sample],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Figures, and which case and which seed each is of, as columns of 0 and 1."""
    rows = [(c, s, v) for c, one in samples.items() for s, v in one.items()]
    names = list(samples)
    numbers = sorted({seed for _, seed, _ in rows})
    values = np.array([value for _, _, value in rows])
    cases = np.zeros((len(rows), len(names)))
    seeds = np.zeros((len(rows), len(numbers)))
    for row, (case, seed, _) in enumerate(rows):
        cases[row, names.index(case)] = seeds[row, numbers.index(seed)] = 1.0
    return values - (values.mean() if len(rows) else 0.0), cases, seeds


def _residual(columns: np.ndarray, values: np.ndarray) -> tuple[float, int]:
    """Sum of squares that columns leave, and its degrees of freedom."""
    products = columns.T @ columns
    fitted, _, rank, _ = np.linalg.lstsq(products, columns.T @ values, rcond=1e-10)
    rest = values - columns @ fitted
    return float(rest @ rest), len(values) - int(rank)


def _contrasts(
    samples: Mapping[str, Sample], baselines: Mapping[str, str], spread: Spread
) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the figures in each difference, and the differences' covariance."""
    _, cases, seeds = _columns(samples)
    # By Woodbury's identity: figures of a seed share its variance.
    shares = spread.seed / (spread.noise + spread.seed * seeds.sum(0))
    weighted = (cases - seeds @ (shares[:, None] * (seeds.T @ cases))) / spread.noise
    covariance = np.linalg.inv(cases.T @ weighted)
    names = list(samples)
    rows = np.zeros((len(baselines), len(names)))
    for row, (case, base) in enumerate(baselines.items()):
        rows[row, names.index(case)] += 1.0
        rows[row, names.index(base)] -= 1.0
    return rows @ covariance @ weighted.T, rows @ covariance @ rows.T


def _unlike(samples: Mapping[str, Sample]) -> set[str]:
    """The cases that spread more than the rest; all, if spreads differ altogether."""
    known = {
        name: (float(np.var(list(one.values()), ddof=1)), len(one) - 1)
        for name, one in samples.items()
    }
    varying = {name: one for name, one in known.items() if one[0] > 0.0}
    if len(varying) < 2:
        return set(samples)
    total = sum(v * f for v, f in known.values())
    freedom = sum(f for _, f in known.values())
    pooled = sum(v * f for v, f in varying.values())
    free = sum(f for _, f in varying.values())
    statistic = free * math.log(pooled / free) - sum(
        f * math.log(v) for v, f in varying.values()
    )
    correction = (sum(1 / f for _, f in varying.values()) - 1 / free) / (
        3 * (len(varying) - 1)
    )
    if stats.chi2.sf(statistic / (1 + correction), len(varying) - 1) < _GUARD:
        return set(samples)
    unlike = set()
    for name, (variance, own) in known.items():
        rest = (total - variance * own) / (freedom - own)
        if rest == 0.0 or stats.f.sf(variance / rest, own, freedom - own) < _GUARD:
            unlike.add(name)
    return unlike


def _own(
    case: Sample, baseline: Sample, count: int, margin: float | None, level: float
) -> Comparison:
    """Cochran's comparison of two samples, one of `count` that are corrected."""
    one, other = np.array([*case.values()]), np.array([*baseline.values()])
    difference = float(one.mean() - other.mean())
    parts = [float(np.var(a, ddof=1)) / len(a) for a in (one, other)]
    error = math.sqrt(sum(parts))
    if error == 0.0:
        if difference:
            return Comparison(difference, is_pooled=False)
        return Comparison(0.0, 0.0, 0.0, 1.0, None if margin is None else 0.0, False)
    freedoms = [len(one) - 1, len(other) - 1]

    def quantile(p: float) -> float:
        points = [-float(special.stdtrit(f, p)) for f in freedoms]
        return math.fsum(v * q for v, q in zip(parts, points, strict=True)) / sum(parts)

    def tail(t: float) -> float:
        """Finds the probability whose quantile is t: quantiles are weighted."""
        if t <= 0.0:
            return 1.0  # Beyond any margin.
        low, high = -700.0, math.log(0.5)
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (
                (low, middle) if quantile(math.exp(middle)) < t else (middle, high)
            )
        return math.exp(high)

    half = quantile(level / (2 * count)) * error
    size = abs(difference)
    equivalence = None
    if margin is not None:
        equivalence = min(1.0, count * tail((margin - size) / error))
    return Comparison(
        difference,
        difference - half,
        difference + half,
        min(1.0, 2 * count * tail(size / error)),
        equivalence,
        is_pooled=False,
    )


def _mean(sample: Sample) -> float:
    return math.fsum(sample.values()) / len(sample)
