"""Stages of a study: a search, the seeds that judge, more where nothing is told.

A plan has the runs that are known. The choice of a search, and the cases that need
another seed, are read from the runs that have ended: a sweep plans again after each
stage.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from reslab.study import sequential
from reslab.study.budgets import steps_at_equal_flops
from reslab.study.family import LEVEL
from reslab.study.outcome import Outcome
from reslab.study.plan import Plan, plan
from reslab.study.results import read_run
from reslab.study.search import best_factor, by_case
from reslab.study.selection import ALL, Selection


def staged(
    source: str,
    overrides: Sequence[str] = (),
    out: str | None = None,
    selection: Selection = ALL,
) -> Plan:
    """Plans the runs of a study that are known by now.

    Args:
      source: As `plan` takes it.
      overrides: As `plan` takes them.
      out: As `plan` takes it.
      selection: As `plan` takes it.

    Returns:
      The plan, with all runs once the last stage is known.

    Raises:
      ReslabError: If the study cannot be planned, or runs that ended are not its own.
    """
    rest: dict[str, Any] = {"selection": selection}
    planned = plan(source, overrides, out, **rest)
    study = planned.study
    if study.equal == "flops":
        rest["steps"] = steps_at_equal_flops(planned)
        planned = plan(source, overrides, out, **rest)
    factors = {case.name: 1.0 for case in study.cases}
    if study.search is not None:
        searched = _outcomes(planned)
        if not _are_settled(searched):
            return planned
        factors = {case: best_factor(runs) for case, runs in by_case(searched).items()}
    elif not study.is_sequential:
        return planned
    seeds = list(study.seeds)
    most = len(seeds) if not study.is_sequential else 2
    counts = {case.name: most for case in study.cases}
    while True:

        def chosen(case: str, seed: int, counts: Mapping[str, int] = counts) -> Any:
            number = seeds.index(seed) if seed in seeds else -1
            return factors[case], number < counts[case]

        planned = plan(source, overrides, out, chosen=chosen, **rest)
        if not study.is_sequential:
            return planned
        judged = [run for run in _outcomes(planned) if run.factor is None]
        if not _are_settled(judged):
            return planned
        more = _undecided(judged, planned.baselines) - set(study.once)
        grown = {case: n + (case in more) for case, n in counts.items()}
        if grown == counts or max(grown.values()) > len(seeds):
            return planned
        counts = grown


def _outcomes(planned: Plan) -> list[Outcome]:
    return [
        read_run(
            planned.directory / run.directory,
            run.case,
            run.seed,
            run.sha256,
            run.factor,
        )
        for run in planned.runs
    ]


def _are_settled(runs: Sequence[Outcome]) -> bool:
    return all(run.state in ("finished", "diverged") for run in runs)


def _undecided(
    runs: Sequence[Outcome], baselines: Mapping[str, str | None]
) -> set[str]:
    """The cases that need another seed, and their baselines."""
    samples = {
        case: {run.seed: run.figure for run in found if run.figure is not None}
        for case, found in by_case(runs).items()
    }
    found = sequential.compare(samples, baselines)
    lost = {run.case for run in runs if run.state == "diverged"}
    more = set()
    for case, base in baselines.items():
        one = found.get(case)
        is_told = one is not None and one.p is not None and one.p < LEVEL
        is_open = base is not None and one is not None and one.p is not None
        if is_open and not is_told and not lost & {case, base}:
            more |= {case, base}
    return more
