"""Each case of a study against its baseline: at equal data, compute and time."""

import dataclasses
import functools
import math
import statistics
from collections.abc import Callable, Sequence

from reslab.study import family, sequential
from reslab.study.family import LEVEL, Comparison, Sample
from reslab.study.marks import EQUAL_FLOPS
from reslab.study.results import Outcome, Results
from reslab.study.statistics import Summary, summarize

# Figures of a run at a place, and the place of a pair of cases.
_Figure = Callable[[Outcome, float | None], float | None]
_Place = Callable[[str, str | None], float | None]


@dataclasses.dataclass(frozen=True)
class Row:
    """One case of a table, in the held-out figure of its task.

    Attributes:
      case: Its name.
      baseline: The case that it is held against; None if it is one itself.
      at: Where it was measured, in tokens, FLOPs or seconds; None where it was not.
      summary: Its runs.
      against: The runs of the baseline, at the same place.
      comparison: How they differ; None without a figure on both sides.
      diverged: How many of its runs diverged.
      baseline_diverged: How many of the baseline's did.
      runs: How many runs it has.
      is_higher_better: Whether a larger figure is a better one.
    """

    case: str
    baseline: str | None
    at: float | None
    summary: Summary
    against: Summary | None
    comparison: Comparison | None
    diverged: int = 0
    baseline_diverged: int = 0
    runs: int = 0
    is_higher_better: bool = False

    @property
    def verdict(self) -> str:
        """States the verdict of the corrected p-value at the 5% level.

        Means are of runs that finished, so a case whose runs diverge can be neither
        better nor as good, and none is worse than a baseline whose runs do.
        """
        if self.baseline is None:
            return "baseline"
        found = self.comparison
        if self.diverged:
            return f"diverged in {self.diverged} of {self.runs}"
        if found is None or found.p is None:
            return "cannot tell"
        if found.p < LEVEL:
            is_higher = found.difference > 0
            if is_higher == self.is_higher_better:
                return "better"
            return "cannot tell" if self.baseline_diverged else "worse"
        is_equal = found.equivalence is not None and found.equivalence < LEVEL
        if is_equal and not self.baseline_diverged:
            return "as good as"
        return "no difference shown"


def at_equal_units(results: Results) -> list[Row]:
    """Final held-out figures; at the smallest budget where the budgets differ.

    The final figure is of all held-out data. At a smaller budget than its own a run
    is read off its curve, which is of a sample, and so then are all runs of the table.
    """
    budgets = {run.budget for run in results.runs if run.is_finished}
    place = min(budgets, default=None)

    def figure(run: Outcome, units: float | None) -> float | None:
        if len(budgets) == 1:
            return run.figure
        return None if units is None else run.figure_at_units(units)

    return _table(results, lambda case, baseline: place, figure)


def at_equal_flops(results: Results) -> list[Row]:
    """Held-out figures at equal training FLOPs; none if that is equal data.

    Where all runs end at the same FLOPs, each with a schedule that ends there, these
    are final figures. Elsewhere they are read off the curves, at the smallest FLOPs of
    a pair of cases, where the dearer case is in the middle of its schedule.
    """
    finished = [run for run in results.runs if run.is_finished]
    known = [run.training_flops for run in finished]
    totals = [flops for flops in known if flops is not None]
    if not totals or len(totals) < len(known):
        return []
    are_equal = max(totals) <= (1 + EQUAL_FLOPS) * min(totals)
    if are_equal and len({run.budget for run in finished}) == 1:
        return []

    def place(case: str, baseline: str | None) -> float | None:
        names = (case, baseline) if baseline else (case,)
        runs = [run for name in names for run in results.finished(name)]
        return min((run.training_flops or 0.0 for run in runs), default=None)

    def figure(run: Outcome, flops: float | None) -> float | None:
        if are_equal:
            return run.figure
        each = run.training_flops_per_unit
        return run.figure_at_units(flops / each) if flops and each else None

    return _table(results, place, figure)


def at_equal_time(results: Results) -> list[Row]:
    """Held-out curves at the shortest training time of each pair of cases.

    Time counts the training steps alone, without compiling, evaluations and
    checkpoints; the curve is linear between evaluations. A baseline alone is
    given at the shortest time of its own runs.
    """

    def place(case: str, baseline: str | None) -> float | None:
        runs = results.finished(case)
        runs = runs + (results.finished(baseline) if baseline else [])
        times = [run.seconds for run in runs]
        known = [time for time in times if time is not None]
        return min(known) if known and len(known) == len(times) else None

    def figure(run: Outcome, seconds: float | None) -> float | None:
        return None if seconds is None else run.figure_at_time(seconds)

    return _table(results, place, figure)


@dataclasses.dataclass(frozen=True)
class Reach:
    """Computes how soon runs of a case reach the baseline's final figure.

    Attributes:
      case: Its name.
      baseline: The case that it is held against; None if it is one itself.
      figure: Mean end of the baseline's held-out curves.
      steps: Steps that each run took to get there, of those that finished or diverged;
        None for a run that did not.
      seconds: The same in time of training.
      baseline_steps: Steps of the baseline's runs, on average.
      baseline_seconds: The same in time of training.
    """

    case: str
    baseline: str | None
    figure: float | None
    steps: Sequence[float | None]
    seconds: Sequence[float | None]
    baseline_steps: float | None
    baseline_seconds: float | None


def reaching_the_baseline(results: Results) -> list[Reach]:
    """Steps and time of every case to the end of its baseline's curve."""
    rows = []
    for case in results.cases:
        baseline = results.baselines.get(case)
        others = [run for run in results.finished(baseline or case) if run.curve]
        figure = _mean([run.curve[-1][1] for run in others])
        ended = [
            run for run in results.of(case) if run.state in ("finished", "diverged")
        ]
        steps = [
            run.step_reaching(figure)
            if figure is not None and run.is_finished
            else None
            for run in ended
        ]
        seconds = [
            None if step is None else run.seconds_at(step)
            for run, step in zip(ended, steps, strict=True)
        ]
        times = [run.seconds for run in others if run.seconds is not None]
        rows.append(
            Reach(
                case,
                baseline,
                figure,
                steps,
                seconds,
                _mean([float(run.curve[-1][0]) for run in others]),
                _mean(times),
            )
        )
    return rows


def censored_median(values: Sequence[float | None]) -> float | None:
    """The median, where what did not happen is later than all that did.

    None where the median is of what did not happen.

    >>> censored_median([30.0, None, 10.0]), censored_median([30.0, None])
    (30.0, None)
    """
    late = [math.inf if value is None else value for value in values]
    median = statistics.median(late) if late else math.inf
    return median if median < math.inf else None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _table(results: Results, place: _Place, figure: _Figure) -> list[Row]:
    places = {case: place(case, results.baselines.get(case)) for case in results.cases}
    samples: dict[str, Sample] = {}
    against: dict[str, Sample] = {}
    for case, at in places.items():
        samples[case] = _figures(results.finished(case), at, figure)
        if baseline := results.baselines.get(case):
            against[case] = _figures(results.finished(baseline), at, figure)
    compared = (
        sequential.compare
        if results.is_sequential
        else functools.partial(family.compare, margin=results.margin)
    )
    found = compared(
        samples,
        {
            case: None if _diverged(results, case) else results.baselines.get(case)
            for case in results.cases
        },
        against=against,
    )
    rows = []
    for case, at in places.items():
        baseline = results.baselines.get(case)
        rows.append(
            Row(
                case,
                baseline,
                at,
                summarize(list(samples[case].values())),
                summarize(list(against[case].values())) if baseline else None,
                found.get(case),
                diverged=_diverged(results, case),
                baseline_diverged=_diverged(results, baseline) if baseline else 0,
                runs=len(results.of(case)),
                is_higher_better=results.headline.is_higher_better,
            )
        )
    return rows


def _diverged(results: Results, case: str) -> int:
    return sum(run.state == "diverged" for run in results.of(case))


def _figures(
    runs: Sequence[Outcome], at: float | None, figure: _Figure
) -> dict[int, float]:
    """The figures of all runs by seed, or none: a part would be another sample."""
    known = {run.seed: figure(run, at) for run in runs}
    values = {seed: value for seed, value in known.items() if value is not None}
    return values if len(values) == len(known) else {}
