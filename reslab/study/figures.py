"""The figures of a report that need no probe: curves and differences."""

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from reslab.observe import charts
from reslab.study import numbers
from reslab.study.comparison import Row
from reslab.study.document import Figure, Table
from reslab.study.results import Outcome, Results

# Curves begin at this share of the budget: the initial fall would dominate.
_FROM = 0.1
_MOST_POINTS = 100
# More lines are indistinguishable.
_MOST_LINES = 8
# Beyond this multiple of the median difference, all others would shrink to a point.
_FAR = 100


class _Curve(NamedTuple):
    """The mean over runs at the steps that all of them have."""

    case: str
    steps: list[int]
    mean: list[float]
    deviation: list[float | None]


def counted_runs(results: Results, cases: Sequence[str]) -> str:
    """The number of runs behind a figure, for its caption; finished ones if any are."""
    runs = {case: results.finished(case) or results.measured(case) for case in cases}
    counts = {case: len(of_case) for case, of_case in runs.items()}
    if len(set(counts.values())) == 1:
        each = " each" if len(counts) > 1 else ""
        return f"n = {next(iter(counts.values()))}{each}."
    return f"n: {', '.join(f'{case} {count}' for case, count in counts.items())}."


def differences(
    results: Results, rows: Sequence[Row], identifier: str, title: str
) -> Figure | None:
    """The differences of a table with their intervals; None without any."""
    shown = [row for row in rows if row.baseline is not None]
    if not any(row.comparison for row in shown):
        return None
    intervals, data, far = [], [], []
    side = "right" if results.headline.is_higher_better else "left"
    usual = statistics.median(
        abs(r.comparison.difference) for r in shown if r.comparison
    )
    for row in shown:
        found = row.comparison
        values = (found.difference, found.low, found.high) if found else (None,) * 3
        if found and abs(found.difference) > _FAR * usual > 0:
            far.append(row.case)
        else:
            intervals.append(charts.Interval(f"{row.case} - {row.baseline}", *values))
        data.append([row.case, row.baseline or "", *map(numbers.exact, values)])
    left_out = f"Too far away to be drawn: {', '.join(far)}. " if far else ""
    chart = charts.IntervalChart(
        rows=intervals,
        identifier=identifier,
        title=title,
        description=f"{title}: mean difference to the baseline with its 95% interval.",
        x_label=f"difference in {results.headline.name} ({side} is better)",
    )
    return Figure(
        [chart],
        "Dots are differences of the means; lines are their intervals, which hold "
        "together with a probability of 95%. A dot without a line has too few runs. "
        f"{left_out}{counted_runs(results, results.cases)}",
        Table("", ["case", "baseline", "difference", "low", "high"], data),
    )


def curves(results: Results) -> list[Figure]:
    """Draws held-out figures over units, FLOPs and time, and those of training."""
    held_out = [_curve(results, c, lambda run: run.curve) for c in results.cases]
    training = [_curve(results, c, _training) for c in results.cases]
    unit = results.unit
    found = (
        _lines(results, held_out, "held-out", unit, f"training {unit}", _units),
        _lines(results, training, "training", unit, f"training {unit}", _units),
        _lines(results, held_out, "held-out", "FLOPs", "training FLOPs", _flops),
        _lines(results, held_out, "held-out", "time", "training time", _seconds),
    )
    return [figure for figure in found if figure]


def _training(run: Outcome) -> list[tuple[int, float]]:
    """Figures of the training batches, in at most a hundred means."""
    name = run.headline.metric
    rows = [(r["step"], r[name]) for r in run.rows if r.get(name) is not None]
    size = max(1, math.ceil(len(rows) / _MOST_POINTS))
    blocks = [rows[i : i + size] for i in range(0, len(rows), size)]
    return [(b[-1][0], sum(figure for _, figure in b) / len(b)) for b in blocks]


def _curve(results: Results, case: str, points: Any) -> _Curve:
    runs = [dict(points(run)) for run in results.finished(case)]
    steps = sorted(set.intersection(*map(set, runs))) if runs else []
    values = np.array([[run[step] for step in steps] for run in runs])
    if not steps:
        return _Curve(case, [], [], [])
    deviation: list[float | None] = [None] * len(steps)
    if len(runs) > 1:
        deviation = values.std(axis=0, ddof=1).tolist()
    return _Curve(case, steps, values.mean(axis=0).tolist(), deviation)


def _units(runs: Sequence[Outcome], step: int) -> float | None:
    return float(step * runs[0].units_per_step)


def _flops(runs: Sequence[Outcome], step: int) -> float | None:
    per_unit = runs[0].training_flops_per_unit
    return None if per_unit is None else step * runs[0].units_per_step * per_unit


def _seconds(runs: Sequence[Outcome], step: int) -> float | None:
    times = [run.seconds_at(step) for run in runs]
    known = [time for time in times if time is not None]
    return sum(known) / len(known) if known and len(known) == len(times) else None


def _lines(
    results: Results,
    found: Sequence[_Curve],
    what: str,
    over: str,
    x_name: str,
    place: Any,
) -> Figure | None:
    lines, data, left_out = [], [], []
    for curve in found:
        runs = results.finished(curve.case)
        places = [place(runs, step) for step in curve.steps]
        xs = [x for x in places if x is not None]
        if not xs or len(xs) < len(places):
            if runs:
                left_out.append(curve.case)
            continue
        lows, highs = _edges(curve, -1), _edges(curve, 1)
        for step, *row in zip(
            curve.steps, xs, curve.mean, curve.deviation, strict=True
        ):
            data.append([curve.case, str(step), *map(numbers.exact, row)])
        first = _FROM * curve.steps[-1]
        kept = [i for i, step in enumerate(curve.steps) if step >= first]
        lines.append(
            charts.Series(
                curve.case,
                [xs[i] for i in kept],
                [curve.mean[i] for i in kept],
                [lows[i] for i in kept],
                [highs[i] for i in kept],
            )
        )
    if not lines:
        return None
    names = [line.name for line in lines]
    kept, told = distinct(results, names)
    lines = [line for case in kept for line in lines if line.name == case]
    unit = ""
    if over == "time":
        unit, factor = time_unit(max(x for line in lines for x in line.x))
        lines = [line._replace(x=[x / factor for x in line.x]) for line in lines]
        unit = f" ({unit})"
    logarithmic = over == "FLOPs"
    title = f"{what.capitalize()} {results.headline.name} over {x_name}"
    chart = charts.LineChart(
        series=lines,
        identifier=f"{what}-{over}".lower(),
        title=title,
        description=f"{title}, one line for each of {len(lines)} cases, with a band "
        "of one standard deviation over seeds.",
        x_label=f"{x_name}{unit}{', logarithmic' if logarithmic else ''}",
        y_label=results.headline.name,
        is_log_x=logarithmic,
    )
    words = "Mean over finished runs; bands are ±1 standard deviation over seeds. "
    words += f"Drawn from {_FROM:.0%} of the budget on."
    if what == "training":
        words += f" Means of consecutive rows, at most {_MOST_POINTS} points."
    if left_out:
        words += f" Without {', '.join(left_out)}: not recorded."
    words += told
    x_column = {"FLOPs": "flops", "time": "seconds"}.get(over, over)
    header = ["case", "step", x_column, "mean", "sd"]
    return Figure(
        [chart],
        f"{words} {counted_runs(results, names)}",
        Table("", header, data),
    )


def distinct(results: Results, cases: Sequence[str]) -> tuple[Sequence[str], str]:
    """Chooses as many cases as lines can be distinguished, and writes their caption.

    Of more, those that others are held against, the best and the worst at the end.
    """
    if len(cases) <= _MOST_LINES:
        return cases, ""
    against = {base for base in results.baselines.values() if base}
    kept = [case for case in cases if case in against][:_MOST_LINES]
    others = by_result(results, [case for case in cases if case not in kept])
    free = _MOST_LINES - len(kept)
    worst = free // 2
    best = free - worst
    kept += others[:best] + others[len(others) - worst :]
    told = f" Of {len(cases)} cases, what others are held against, the {best} best and "
    told += f"the {worst} worst at their end; the numbers are those of all."
    return kept, told


def by_result(results: Results, cases: Sequence[str]) -> list[str]:
    """Sorts cases by their mean final figure, the best first, those without last."""

    def final(case: str) -> float:
        values = [run.figure for run in results.finished(case)]
        known = [value for value in values if value is not None]
        if not known:
            return math.inf
        return results.headline.order(statistics.fmean(known))

    return sorted(cases, key=final)


def _edges(curve: _Curve, sign: int) -> list[float | None]:
    return [
        None if deviation is None else mean + sign * deviation
        for mean, deviation in zip(curve.mean, curve.deviation, strict=True)
    ]


def time_unit(seconds: float) -> tuple[str, float]:
    """The unit in which a time is read best, and its seconds.

    >>> time_unit(90.0), time_unit(9000.0)
    (('s', 1.0), ('min', 60.0))
    """
    if seconds < 600:
        return "s", 1.0
    return ("min", 60.0) if seconds < 6 * 3600 else ("h", 3600.0)
