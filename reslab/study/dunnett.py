"""Distribution of the largest of several comparisons with one baseline."""

import collections
import functools
import math
from collections.abc import Sequence

import numpy as np
from scipy import optimize, special, stats

# Loads of comparisons, those with one baseline together.
Groups = tuple[tuple[float, ...], ...]

_NORMAL, _NORMAL_WEIGHTS = np.polynomial.hermite_e.hermegauss(40)
_NORMAL_WEIGHTS = _NORMAL_WEIGHTS / _NORMAL_WEIGHTS.sum()
_LEGENDRE, _LEGENDRE_WEIGHTS = np.polynomial.legendre.leggauss(64)
_TAIL = 1e-13


def exceeding(
    t: float, groups: Groups, freedom: float, *, is_two_sided: bool = True
) -> float:
    """Probability that the largest of several t statistics exceeds one.

        T_i = (sqrt(1 - l_i**2) z_i + l_i z_g) / s,    s**2 ~ chi2(f) / f

    with a `z_g` that all comparisons with one baseline share, and an `s` that all
    share. One group with `l_i**2 = v_0 / (v_0 + v_i)` is Dunnett's distribution, `v`
    the variances of the means.

    Reference: Dunnett, 1955, https://doi.org/10.1080/01621459.1955.10501294.

    Args:
      t: The value.
      groups: For every baseline the loads `l_i` of the comparisons with it, in [0, 1).
      freedom: Degrees of freedom of the pooled variance.
      is_two_sided: Whether the largest absolute value is meant.

    Returns:
      The probability; between the one for a single comparison and its multiple by the
      number of comparisons, to which the integral is bounded where it is tiny.
    """
    count = sum(map(len, groups))
    sides = 2 if is_two_sided else 1
    alone = sides * float(special.stdtr(freedom, -t))
    scales, weights = _scales(freedom)
    inside = np.ones_like(scales)
    for group in groups:
        product = np.ones((len(scales), len(_NORMAL)))
        for load, times in collections.Counter(group).items():
            rest, mean = math.sqrt(1.0 - load**2), load * _NORMAL
            below = special.ndtr((t * scales[:, None] - mean) / rest)
            if is_two_sided:
                below = below - special.ndtr((-t * scales[:, None] - mean) / rest)
            product = product * below**times
        inside = inside * (product @ _NORMAL_WEIGHTS)
    outside = 1.0 - float(inside @ weights)
    return min(1.0, max(alone, min(outside, count * alone)))


@functools.lru_cache(maxsize=4096)
def critical(level: float, groups: Groups, freedom: float) -> float:
    """The value that the largest absolute statistic exceeds with a probability."""
    count = sum(map(len, groups))
    low = -float(special.stdtrit(freedom, level / 2))
    high = -float(special.stdtrit(freedom, level / (2 * count)))
    if count == 1:
        return low
    return optimize.root_scalar(
        lambda t: exceeding(t, groups, freedom) - level,
        bracket=(low - 1e-9, high + 1e-9),
        xtol=1e-6,
    ).root


@functools.lru_cache(maxsize=1024)
def _scales(freedom: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights for the root of chi2(f) / f, in its logarithm."""
    low, high = (
        math.log(stats.chi2.ppf(p, freedom) / freedom) / 2 for p in (_TAIL, 1 - _TAIL)
    )
    logarithms = low + (high - low) * (_LEGENDRE + 1) / 2
    scales = np.exp(logarithms)
    # Density of the logarithm of s, up to a constant.
    exponents = freedom * (logarithms - scales**2 / 2)
    density = np.exp(exponents - exponents.max())
    weights = density * _LEGENDRE_WEIGHTS
    return scales, weights / weights.sum()


def loads(covariance: np.ndarray, baselines: Sequence[str]) -> Groups:
    """The loads of comparisons by baseline, from their covariance.

    Exact where all comparisons with a baseline share one covariance, as they do when
    their cases have the same seeds; elsewhere the mean covariance is taken.

    Args:
      covariance: Of the differences, `[comparisons, comparisons]`.
      baselines: The baseline of each.

    Returns:
      The loads.
    """
    members = [
        [i for i, name in enumerate(baselines) if name == one]
        for one in dict.fromkeys(baselines)
    ]
    groups = []
    for group in members:
        part = covariance[np.ix_(group, group)]
        off = part[~np.eye(len(group), dtype=bool)]
        shared = max(0.0, float(off.mean())) if len(group) > 1 else 0.0
        squares = np.minimum(shared / np.diag(part), 0.999)
        # Rounded: equal loads are integrated once.
        groups.append(tuple(round(float(v), 6) for v in np.sqrt(squares)))
    return tuple(groups)
