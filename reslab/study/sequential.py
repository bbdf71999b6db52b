"""Comparisons that hold whenever one looks: seeds may be added until they decide."""

import math
from collections.abc import Mapping, Sequence

from reslab.study.family import LEVEL, Comparison, Sample


def evidence(differences: Sequence[float], scale: float = 1.0) -> float:
    """The e-value of paired differences.

        n = number,  f = n - 1,  t**2 = n mean**2 / sd**2,  G = 1 + n g
        e = G**(-1/2) ((f + t**2) / (f + t**2 / G))**(n/2)

    is the ratio of the likelihoods of the t statistic under effects of `N(0, g)`
    standard deviations and under none: a martingale of expectation 1 without an effect,
    so the chance that it ever reaches `1 / a` is at most `a`, however often one looks.

    References: Wang & Ramdas, 2023, arXiv 2310.03722; Lindon, Ham, Tingley & Bojinov,
    2022, arXiv 2210.08589.

    Args:
      differences: Of a case and its baseline, seed by seed.
      scale: Root of `g`.

    Returns:
      The e-value; 1 below two differences.
    """
    count = len(differences)
    if count < 2:
        return 1.0
    mean, square = _moments(differences)
    grown = 1.0 + count * scale**2
    if square == 0.0:  # The limit of a small spread: ties are no proof.
        return 1.0 if mean == 0.0 else grown ** ((count - 1) / 2)
    t2 = count * mean**2 / square
    ratio = (count - 1 + t2) / (count - 1 + t2 / grown)
    return math.exp(count / 2 * math.log(ratio) - math.log(grown) / 2)


def bound(differences: Sequence[float], level: float, scale: float = 1.0) -> float:
    """Half the width of the interval of the mean that holds whenever one looks.

    It has all means whose `evidence` is below `1 / level`; infinite where all have.
    """
    count = len(differences)
    if count < 2:
        return math.inf
    grown = 1.0 + count * scale**2
    largest = math.exp(2 / count * (math.log(grown) / 2 - math.log(level)))
    if largest >= grown:
        return math.inf
    t2 = (count - 1) * (largest - 1) / (1 - largest / grown)
    return math.sqrt(t2 * _moments(differences)[1] / count)


def compare(
    samples: Mapping[str, Sample],
    baselines: Mapping[str, str | None],
    *,
    against: Mapping[str, Sample] | None = None,
    level: float = LEVEL,
) -> dict[str, Comparison]:
    """Compares every case with its baseline by e-values of paired differences.

    Args:
      samples: For every case its figures by seed.
      baselines: For every case the one that it is held against, or None.
      against: As in `family.compare`.
      level: Probability of any false finding, at any time.

    Returns:
      The comparisons; `p` is the number of comparisons divided by the e-value.
    """
    gaps = {}
    for case, base in baselines.items():
        if base is not None:
            other = (against or {}).get(case, samples.get(base, {}))
            shared = sorted(samples.get(case, {}).keys() & other.keys())
            gaps[case] = [samples[case][seed] - other[seed] for seed in shared]
    # A case that is run once is never told.
    count = sum(len(one) > 1 for one in gaps.values())
    found = {}
    for case, one in gaps.items():
        if not one:
            continue
        mean = math.fsum(one) / len(one)
        if len(one) == 1:
            found[case] = Comparison(mean)
            continue
        half = bound(one, level / count)
        is_bounded = half < math.inf
        found[case] = Comparison(
            mean,
            mean - half if is_bounded else None,
            mean + half if is_bounded else None,
            min(1.0, count / evidence(one)),
            is_pooled=False,
        )
    return found


def _moments(values: Sequence[float]) -> tuple[float, float]:
    """Mean and variance."""
    mean = math.fsum(values) / len(values)
    return mean, math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)
