"""Power of a study: which effects it finds, and how many seeds others need."""

import math
from collections.abc import Sequence

import numpy as np

from reslab.core.errors import ReslabError
from reslab.study import numbers
from reslab.study.declaration import baseline_share
from reslab.study.document import Table
from reslab.study.family import LEVEL, Sample, Spread, compare, spread_of
from reslab.study.results import Results

WANTED = 0.8
_SEEDS = (2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 30, 50)


def power(
    spread: Spread,
    effect: float,
    *,
    cases: int,
    seeds: int,
    baseline_seeds: int,
    repeats: int = 200,
) -> float:
    """Share of simulated studies in which an effect is found.

    Every simulated table has `cases` comparisons with one baseline; one case has the
    effect, all others none.

    Args:
      spread: The variances.
      effect: Size of the effect.
      cases: Number of cases beside the baseline.
      seeds: Seeds of each case.
      baseline_seeds: Seeds of the baseline, the first of them shared with the cases.
      repeats: Number of simulated studies.

    Returns:
      The share.
    """
    random = np.random.default_rng(0)
    baselines = {str(i): "0" if i else None for i in range(cases + 1)}
    counts = [baseline_seeds, *[seeds] * cases]
    most = max(counts)
    found = 0
    for _ in range(repeats):
        blocks = random.normal(0.0, math.sqrt(spread.seed), most)
        noise = random.normal(0.0, spread.deviation, (cases + 1, most))
        noise[1] += effect
        samples: dict[str, Sample] = {
            str(i): dict(enumerate((blocks + noise[i])[:count]))
            for i, count in enumerate(counts)
        }
        one = compare(samples, baselines)["1"]
        found += one.p is not None and one.p < LEVEL and one.difference * effect > 0
    return found / repeats


def seeds_for(spread: Spread, effect: float, cases: int) -> int | None:
    """The fewest seeds of a case that find an effect in 80% of simulated studies.

    None where 50 do not.
    """
    low, high = 0, len(_SEEDS)
    while low < high:
        middle = (low + high) // 2
        seeds = _SEEDS[middle]
        share = power(
            *(spread, effect),
            cases=cases,
            seeds=seeds,
            baseline_seeds=seeds * baseline_share(cases),
        )
        low, high = (low, middle) if share >= WANTED else (middle + 1, high)
    return _SEEDS[low] if low < len(_SEEDS) else None


def of_study(results: Results, effects: Sequence[float] = ()) -> tuple[str, Table]:
    """Tells the spread of a study's final figures, and what seeds would show.

    Args:
      results: The study.
      effects: Differences of the held-out figure; 0.5, 1, 2 and 4 standard deviations
        if empty.

    Returns:
      A sentence on the spread, and a table of effects: the power of the study as it is,
      and seeds for 80%, with this spread and with half of it.

    Raises:
      ReslabError: If no case is compared, or too few runs have ended.
    """
    if results.is_sequential:
        raise ReslabError(
            f"power of {results.name}",
            expected="a study of a fixed number of seeds",
            got="one whose seeds were added until e-values told a difference",
        )
    samples = {
        case: {run.seed: run.figure for run in results.finished(case)}
        for case in results.cases
    }
    known: dict[str, Sample] = {
        case: {seed: figure for seed, figure in one.items() if figure is not None}
        for case, one in samples.items()
    }
    known = {case: one for case, one in known.items() if len(one) > 1}
    spread = spread_of(known)
    bases = [base for base in results.baselines.values() if base in known]
    if spread is None or not bases or spread.noise == 0.0:
        raise ReslabError(
            f"power of {results.name}",
            expected="a baseline and cases of at least two finished seeds, that differ",
        )
    base = max(set(bases), key=bases.count)
    rivals = [c for c in known if results.baselines.get(c) == base]
    if not rivals:
        raise ReslabError(
            f"power of {results.name}", expected="a case of at least two finished seeds"
        )
    cases = len(rivals)
    seeds = min(len(known[case]) for case in rivals)
    half = Spread(spread.noise / 4, spread.seed / 4, spread.freedom)
    rows = []
    for effect in effects or [k * spread.deviation for k in (0.5, 1.0, 2.0, 4.0)]:
        now = power(
            *(spread, effect),
            cases=cases,
            seeds=seeds,
            baseline_seeds=len(known[base]),
        )
        needed = [seeds_for(one, effect, cases) for one in (spread, half)]
        rows.append(
            [
                numbers.number(effect),
                f"{now:.0%}",
                *("more than 50" if one is None else str(one) for one in needed),
            ]
        )
    text = (
        f"Standard deviation within a seed: {spread.deviation:.4g} "
        f"{results.headline.name} ({spread.freedom} degrees of freedom); correlation "
        f"of cases with the same seed: {spread.correlation:.2f}."
    )
    caption = (
        f"{numbers.counted(cases, 'case')} against {base}, simulated 200 times a cell: "
        "how often an effect of one case is found as the study is, and the seeds of a "
        f"case that find it in {WANTED:.0%}, the baseline with "
        f"{numbers.counted(baseline_share(cases), 'seed')} for each of theirs."
    )
    header = ["effect", f"found with {seeds} seeds", f"seeds for {WANTED:.0%}"]
    return text, Table(caption, [*header, "at half the spread"], rows)
