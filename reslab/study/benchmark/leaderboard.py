"""The leaderboard: every case of the benchmark on every task, from run directories."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from reslab.core import registry
from reslab.study import numbers
from reslab.study.benchmark.tasks import Task, task
from reslab.study.comparison import Row, at_equal_units, censored_median
from reslab.study.outcome import Outcome
from reslab.study.plan import plan
from reslab.study.results import Results, read_run
from reslab.study.search import best_factor, by_case, is_at_edge
from reslab.study.selection import ALL, Selection

# An error at which a problem counts as learned.
LEARNED = 0.1
_SETTLED = ("finished", "diverged")


@dataclasses.dataclass(frozen=True)
class Column:
    """One task.

    Attributes:
      task: The task.
      baseline: Mean figure of the baseline's runs, or None.
      runs: Runs of every case by its name, those that judge alone.
      searches: Runs of the search of every case, by its name.
      rows: Comparisons of the cases whose runs have ended, by case.
      missing: What keeps the task from judging, or an empty string.
    """

    task: Task
    baseline: float | None
    runs: Mapping[str, Sequence[Outcome]]
    searches: Mapping[str, Sequence[Outcome]]
    rows: Mapping[str, Row]
    missing: str = ""


def read_column(
    name: str,
    directory: pathlib.Path,
    asked: Selection = ALL,
    overrides: Sequence[str] = (),
) -> Column:
    """Reads the runs of a task.

    Args:
      name: The task.
      directory: Directory of its study; it may be missing.
      asked: Cases that were added to those of the benchmark.
      overrides: Fields that were changed for all runs, each as `FIELD=VALUE`.

    Returns:
      The column, with the cases whose search and whose seeds have all ended.

    Raises:
      ReslabError: If there is no such task, or a run is damaged.
    """
    source, added = f"benchmark:{name}", Selection(more=asked.more)
    searched = _ended(plan(source, overrides, selection=added).runs, directory)
    factors = {case: best_factor(runs) for case, runs in searched.items()}

    def chosen(case: str, seed: int) -> tuple[float, bool]:
        del seed
        return factors.get(case, 1.0), case in factors

    some = Selection(tuple(factors) or ("baseline",), asked.more)
    planned = plan(source, overrides, selection=some, chosen=chosen)
    judging = [run for run in planned.runs if run.factor is None]
    runs = _ended(judging, directory)
    shown = [case for case in runs if not case.startswith("known: ")]
    one = task(name)
    results = Results(
        *(name, one.question, "", shown),
        {case: planned.baselines[case] for case in shown},
        [run for case in shown for run in runs[case]],
    )
    missing = _unanswered(one, runs)
    has_baseline = "baseline" in runs
    rows = at_equal_units(results) if has_baseline and not missing else []
    return Column(
        one,
        _mean(runs.get("baseline", ()), "") if has_baseline else None,
        runs,
        searched,
        {row.case: row for row in rows},
        missing,
    )


def _ended(planned: Sequence[Any], directory: pathlib.Path) -> dict[str, list[Outcome]]:
    """The runs of the cases that have all ended."""
    found = [
        read_run(directory / run.directory, run.case, run.seed, run.sha256, run.factor)
        for run in planned
        if (directory / run.directory).is_dir()
    ]
    counts = by_case(planned)
    return {
        case: runs
        for case, runs in by_case(found).items()
        if len(runs) == len(counts[case]) and all(r.state in _SETTLED for r in runs)
    }


def _unanswered(one: Task, runs: Mapping[str, Sequence[Outcome]]) -> str:
    """Says which known answer of a task did not come out; empty if all did."""
    for answer in one.answers:
        name = answer.case.name
        if name not in runs:
            return f"{name} has not been run"
        mean = _mean(runs[name], answer.metric)
        if mean is None or not answer.above < mean < answer.below:
            return f"{name} has {numbers.number(mean)}, not {answer.expected}"
    return ""


def _mean(runs: Sequence[Outcome], metric: str) -> float | None:
    """Mean of a held-out metric, or of the figure that runs are compared by."""
    found = [
        run.figure if not metric else (run.result or {}).get(f"eval_{metric}")
        for run in runs
    ]
    known = [value for value in found if value is not None]
    return sum(known) / len(known) if known and len(known) == len(found) else None


def names(columns: Sequence[Column]) -> list[str]:
    """The cases that some task has judged, in the order of the tasks' studies."""
    return list(dict.fromkeys(case for one in columns for case in one.rows))


def standardized(row: Row) -> float | None:
    """The difference in standard deviations of the two cases, positive if better."""
    found, spreads = row.comparison, (row.summary, row.against)
    known = [one.deviation for one in spreads if one and one.deviation is not None]
    if found is None or len(known) < len(spreads):
        return None
    size = math.sqrt(sum(value**2 for value in known) / len(known))
    sign = 1 if row.is_higher_better else -1
    return sign * found.difference / size if size else None


def of_cells(columns: Sequence[Column]) -> list[list[Any]]:
    """A header and a row per task and case: everything that a cell stands for."""
    header = ["task", "case", "metric", "n", "mean", "sd", "baseline_n"]
    header += ["baseline_mean", "difference", "low", "high", "p", "spread", "verdict"]
    header += ["rate_factor", "is_at_edge", "parameters", "training_flops_of_baseline"]
    header += ["median_step_learned", "bits_per_parameter", "diverged"]
    rows: list[list[Any]] = [header]
    for one in columns:
        flops = _flops(one.runs.get("baseline", ()))
        for case, row in one.rows.items():
            runs, found = one.runs[case], row.comparison
            factor = best_factor(one.searches[case])
            figures = (
                (found.difference, found.low, found.high, found.p) if found else ()
            )
            against, own = row.against, _flops(runs)
            rows.append(
                [
                    *(one.task.name, case, runs[0].headline.metric, *row.summary[:3]),
                    *((against.count, against.mean) if against else (None, None)),
                    *(figures or (None,) * 4),
                    ("all" if found.is_pooled else "own") if found else None,
                    row.verdict,
                    factor,
                    is_at_edge(factor, one.searches[case]),
                    runs[0].record.get("parameters"),
                    own / flops if own and flops else None,
                    _learned(runs),
                    _bits(one.task, runs),
                    row.diverged,
                ]
            )
    return rows


def _flops(runs: Sequence[Outcome]) -> float | None:
    return runs[0].training_flops_per_unit if runs else None


def _learned(runs: Sequence[Outcome]) -> float | None:
    """Median step at which a problem is learned; None if in most runs it is not."""
    if runs[0].headline.metric != "error":
        return None
    return censored_median([run.step_reaching(LEARNED) for run in runs])


def _bits(one: Task, runs: Sequence[Outcome]) -> float | None:
    """Bits of the table of `memory` that are learned, for each parameter."""
    spec = registry.parse(one.fields.get("data.source", "stdlib"))
    nats, parameters = _mean(runs, "loss"), runs[0].record.get("parameters")
    if spec.name != "memory" or nats is None or not parameters:
        return None
    facts, symbols = spec.arguments["facts"], spec.arguments["symbols"]
    return facts * (math.log2(symbols) - nats / math.log(2)) / parameters


def cell(row: Row | None) -> str:
    """A cell of the table: empty where nothing was tested."""
    if row is None:
        return ""
    if row.baseline is None:
        return f"{numbers.number(row.summary.mean)}"
    found = row.comparison
    if row.diverged or found is None:
        return row.verdict
    marks = {"better": " **better**", "worse": " worse", "as good as": " ="}
    text = f"{numbers.number(found.difference, '+')} "
    text += numbers.interval(found.low, found.high, "+")
    return text + marks.get(row.verdict, "")


def markdown(columns: Sequence[Column]) -> str:
    """The leaderboard as a page."""
    judged = [one for one in columns if one.rows]
    lines = []
    for one in columns:
        if one.missing and one.runs:
            lines.append(f"- `{one.task.name}` judges nothing: {one.missing}.")
    if lines:
        lines.append("")
    head = ["case", *(f"{one.task.name}" for one in judged)]
    lines += [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for case in names(judged):
        cells = [cell(one.rows.get(case)) for one in judged]
        lines.append(f"| {' | '.join([f'`{case}`', *cells])} |")
    return "\n".join(lines) + "\n"
