"""Choice of a field by the runs of a search."""

import math
from collections.abc import Sequence

from reslab.study.outcome import Outcome


def by_case(runs: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """Returns runs by their case."""
    cases = dict.fromkeys(run.case for run in runs)
    return {case: [run for run in runs if run.case == case] for case in cases}


def best_factor(runs: Sequence[Outcome]) -> float:
    """The factor whose mean final figure is the best.

    A factor with a run that diverged comes after all others; of equal ones, the
    smallest is taken.
    """
    figures = figures_by_factor(runs)
    return min(figures, key=lambda factor: (figures[factor], factor))


def is_at_edge(factor: float, runs: Sequence[Outcome]) -> bool:
    """Returns whether no smaller factor was tried, or no larger one."""
    tried = [run.factor for run in runs if run.factor is not None]
    return factor in (min(tried), max(tried))


def figures_by_factor(runs: Sequence[Outcome]) -> dict[float, float]:
    """Mean final figures of the runs of a search, smaller is better; or infinite."""
    found: dict[float, list[float]] = {}
    for run in runs:
        figure = run.figure if run.is_finished else None
        order = math.inf if figure is None else run.headline.order(figure)
        found.setdefault(run.factor or 1.0, []).append(order)
    return {factor: sum(v) / len(v) for factor, v in sorted(found.items())}
