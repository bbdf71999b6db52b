"""Each case of a study against its baseline, at equal data and at equal time."""

import dataclasses
from collections.abc import Callable, Sequence

from reslab.study.results import Outcome, Results
from reslab.study.statistics import Comparison, Summary, compare, holm, summarize

LEVEL = 0.05


@dataclasses.dataclass(frozen=True)
class Row:
    """One case of a table, in the held-out figure of its task.

    Attributes:
      case: Its name.
      baseline: The case that it is held against; None if it is one itself.
      at: Where it was measured, in tokens or in seconds; None where it was not.
      summary: Its runs.
      against: The runs of the baseline, at the same place.
      comparison: How they differ; None without a figure on both sides.
      corrected: Holm's p-value over all comparisons of the table.
      is_higher_better: Whether a larger figure is a better one.
    """

    case: str
    baseline: str | None
    at: float | None
    summary: Summary
    against: Summary | None
    comparison: Comparison | None
    corrected: float | None = None
    is_higher_better: bool = False

    @property
    def verdict(self) -> str:
        """States the verdict of the corrected p-value at the 5% level."""
        if self.baseline is None:
            return "baseline"
        if self.comparison is None or self.corrected is None:
            return "cannot tell"
        if self.corrected >= LEVEL:
            return "no difference shown"
        is_higher = self.comparison.difference > 0
        return "better" if is_higher == self.is_higher_better else "worse"


def at_equal_units(results: Results) -> list[Row]:
    """Final held-out figures; at the smallest budget where the budgets differ.

    The final figure is of all held-out data. At a smaller budget than its own a run
    is read off its curve, which is of the first evaluation batches, and so then are
    all runs of the table.
    """
    budgets = {run.budget for run in results.runs if run.is_finished}
    place = min(budgets, default=None)

    def figure(run: Outcome, units: float | None) -> float | None:
        if len(budgets) == 1:
            return run.figure
        return None if units is None else run.figure_at_units(units)

    return _table(results, lambda case, baseline: place, figure)


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
      steps: Steps that the runs took to get there, of those that did.
      seconds: The same in time of training.
      runs: Number of finished runs.
      baseline_steps: Steps of the baseline's runs, on average.
      baseline_seconds: The same in time of training.
    """

    case: str
    baseline: str | None
    figure: float | None
    steps: Sequence[float]
    seconds: Sequence[float]
    runs: int
    baseline_steps: float | None
    baseline_seconds: float | None


def reaching_the_baseline(results: Results) -> list[Reach]:
    """Steps and time of every case to the end of its baseline's curve."""
    rows = []
    for case in results.cases:
        baseline = results.baselines.get(case)
        others = [run for run in results.finished(baseline or case) if run.curve]
        figure = _mean([run.curve[-1][1] for run in others])
        steps, seconds = [], []
        runs = results.finished(case)
        for run in runs:
            step = None if figure is None else run.step_reaching(figure)
            if step is None:
                continue
            steps.append(step)
            time = run.seconds_at(step)
            if time is not None:
                seconds.append(time)
        ends = [float(run.curve[-1][0]) for run in others]
        times = [run.seconds for run in others if run.seconds is not None]
        rows.append(
            Reach(
                case,
                baseline,
                figure,
                steps,
                seconds,
                len(runs),
                _mean(ends),
                _mean(times),
            )
        )
    return rows


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _table(
    results: Results,
    place: Callable[[str, str | None], float | None],
    figure: Callable[[Outcome, float | None], float | None],
) -> list[Row]:
    rows = []
    higher = results.headline.is_higher_better
    for case in results.cases:
        baseline = results.baselines.get(case)
        at = place(case, baseline)
        values = _figures(results.finished(case), at, figure)
        if baseline is None:
            rows.append(
                Row(
                    *(case, None, at, summarize(values), None, None),
                    is_higher_better=higher,
                )
            )
            continue
        others = _figures(results.finished(baseline), at, figure)
        found = compare(values, others)
        rows.append(
            Row(
                *(case, baseline, at, summarize(values), summarize(others), found),
                is_higher_better=higher,
            )
        )
    corrected = holm([row.comparison.p if row.comparison else None for row in rows])
    return [
        dataclasses.replace(row, corrected=p)
        for row, p in zip(rows, corrected, strict=True)
    ]


def _figures(
    runs: Sequence[Outcome],
    at: float | None,
    figure: Callable[[Outcome, float | None], float | None],
) -> list[float]:
    """The figures of all runs, or none: a part would be another sample."""
    values = [figure(run, at) for run in runs]
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else []
