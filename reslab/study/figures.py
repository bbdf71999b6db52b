"""The figures of a report: curves, differences, and depth over steps."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from reslab.observe import charts
from reslab.study.comparison import Row
from reslab.study.document import Figure, Table
from reslab.study.results import Outcome, Results

# Curves begin at this share of the budget: the initial fall would dominate.
_FROM = 0.1
_MOST_POINTS = 100
_MOST_LOOKS = 60
# More lines are indistinguishable, and a longer list of runs is not read.
_MOST_LINES = 8
_MOST_NAMED = 24
# Beyond this multiple of the median difference, all others would shrink to a point.
_FAR = 100


class _Curve(NamedTuple):
    """The mean over runs at the steps that all of them have."""

    case: str
    steps: list[int]
    mean: list[float]
    deviation: list[float | None]


def named_runs(results: Results, cases: Sequence[str]) -> str:
    """The run directories behind a figure, for its caption, or where they stand."""
    runs = {case: [run.label for run in results.finished(case)] for case in cases}
    count = sum(map(len, runs.values()))
    if count > _MOST_NAMED:
        missing = [case for case in results.cases if not runs.get(case)]
        without = f" but {', '.join(missing)}" if missing else ""
        return f"Runs: the {count} finished ones of all cases{without}, listed below."
    named = (f"{case}: {', '.join(labels)}" for case, labels in runs.items())
    return f"Runs: {'; '.join(named)}."


def differences(
    results: Results, rows: Sequence[Row], identifier: str, title: str
) -> Figure | None:
    """The differences of a table with their intervals; None without any."""
    shown = [row for row in rows if row.baseline is not None]
    if not any(row.comparison for row in shown):
        return None
    intervals, data, far = [], [], []
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
        data.append([row.case, row.baseline or "", *map(_exact, values)])
    left_out = f"Too far away to be drawn: {', '.join(far)}. " if far else ""
    drawing = charts.interval_chart(
        intervals,
        identifier=identifier,
        title=title,
        description=f"{title}: mean difference to the baseline with its 95% interval.",
        x_label="difference in bits per byte (left is better)",
    )
    return Figure(
        [drawing],
        "Dots are differences of the means; lines are 95% intervals (Welch), not "
        "corrected for the number of comparisons. A dot without a line has too few "
        f"runs. {left_out}{named_runs(results, results.cases)}",
        Table("", ["case", "baseline", "difference", "low", "high"], data),
    )


def curves(results: Results) -> list[Figure]:
    """Draws held-out bits per byte over tokens, FLOPs and time, and training loss."""
    held_out = [_curve(results, c, lambda run: run.curve) for c in results.cases]
    training = [_curve(results, c, _training) for c in results.cases]
    found = (
        _lines(results, held_out, "held-out", "tokens", "training tokens", _tokens),
        _lines(results, training, "training", "tokens", "training tokens", _tokens),
        _lines(results, held_out, "held-out", "FLOPs", "training FLOPs", _flops),
        _lines(results, held_out, "held-out", "time", "training time", _seconds),
    )
    return [figure for figure in found if figure]


def _training(run: Outcome) -> list[tuple[int, float]]:
    """Bits per byte of the training batches, in at most a hundred means."""
    rows = [(r["step"], r["bpb"]) for r in run.rows if r.get("bpb") is not None]
    size = max(1, math.ceil(len(rows) / _MOST_POINTS))
    blocks = [rows[i : i + size] for i in range(0, len(rows), size)]
    return [(b[-1][0], sum(bits for _, bits in b) / len(b)) for b in blocks]


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


def _tokens(runs: Sequence[Outcome], step: int) -> float | None:
    return float(step * runs[0].tokens_per_step)


def _flops(runs: Sequence[Outcome], step: int) -> float | None:
    per_token = runs[0].record.get("training_flops_per_token")
    return None if per_token is None else _tokens(runs, step) * per_token


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
            data.append([curve.case, str(step), *map(_exact, row)])
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
    lines, told = _distinct(results, lines)
    unit = ""
    if over == "time":
        unit, factor = time_unit(max(x for line in lines for x in line.x))
        lines = [line._replace(x=[x / factor for x in line.x]) for line in lines]
        unit = f" ({unit})"
    logarithmic = over == "FLOPs"
    title = f"{what.capitalize()} bits per byte over {x_name}"
    drawing = charts.line_chart(
        lines,
        identifier=f"{what}-{over}".lower(),
        title=title,
        description=f"{title}, one line for each of {len(lines)} cases, with a band "
        "of one standard deviation over seeds.",
        x_label=f"{x_name}{unit}{', logarithmic' if logarithmic else ''}",
        y_label="bits per byte",
        is_log_x=logarithmic,
    )
    words = "Mean over finished runs; bands are ±1 standard deviation over seeds. "
    words += f"Drawn from {_FROM:.0%} of the budget on."
    if what == "training":
        words += f" Means of consecutive rows, at most {_MOST_POINTS} points."
    if left_out:
        words += f" Without {', '.join(left_out)}: not recorded."
    words += told
    x_column = {"tokens": "tokens", "FLOPs": "flops", "time": "seconds"}[over]
    header = ["case", "step", x_column, "mean", "sd"]
    return Figure(
        [drawing],
        f"{words} {named_runs(results, names)}",
        Table("", header, data),
    )


def _distinct(
    results: Results, lines: Sequence[charts.Series]
) -> tuple[list[charts.Series], str]:
    """Chooses as many lines as a reader can distinguish, and writes their caption.

    Of more, those that others are held against, the best and the worst at the end.
    """
    if len(lines) <= _MOST_LINES:
        return list(lines), ""
    against = {base for base in results.baselines.values() if base}
    kept = [line for line in lines if line.name in against][:_MOST_LINES]
    others = [line for line in lines if line not in kept]
    others.sort(key=lambda line: math.inf if line.y[-1] is None else line.y[-1])
    free = _MOST_LINES - len(kept)
    worst = free // 2
    best = free - worst
    kept += others[:best] + others[len(others) - worst :]
    told = f" Of {len(lines)} cases, what others are held against, the {best} best and "
    told += f"the {worst} worst at their end; the numbers are those of all."
    return kept, told


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


def depth_maps(results: Results, titles: Mapping[str, Any]) -> list[Figure]:
    """Draws the probes: one figure per quantity, one map per case, one scale.

    Args:
      results: The study.
      titles: What each quantity is: objects with `title` and `axis`, and perhaps
        `is_logarithmic`. One that is not here goes by its own name.

    Returns:
      The figures, in the order of `titles`.
    """
    seen = {
        name
        for run in results.runs
        if run.is_finished
        for row in run.probes.values()
        for name in row
    }
    ordered = [name for name in titles if name in seen]
    ordered += sorted(seen - set(titles))
    figures = []
    for index, name in enumerate(ordered):
        figure = _quantity(results, name, titles.get(name), f"probe-{index}")
        if figure:
            figures.append(figure)
    return figures


def _quantity(
    results: Results, name: str, about: Any, identifier: str
) -> Figure | None:
    maps = {
        case: found
        for case in results.cases
        if (found := _mean_probes(results.finished(case), name))
    }
    if not maps:
        return None
    axis = getattr(about, "axis", "index")
    panels = []
    for case, (steps, stack) in maps.items():
        if stack.ndim == 3:  # One matrix per evaluation: the last one is shown.
            values, columns = stack[-1], _depths(stack.shape[2], axis, across=True)
            rows = _depths(stack.shape[1], axis, across=False)
        else:
            values, columns = stack.T, [str(step) for step in steps]
            rows = _depths(stack.shape[1], axis, across=False)
        panels.append((case, steps, values, columns, rows))
    is_matrix = any(stack.ndim == 3 for _, stack in maps.values())
    up, _, along = axis.partition(" x ")
    scale = charts.common_scale(
        [float(v) for _, _, values, _, _ in panels for v in values.flat],
        is_logarithmic=getattr(about, "is_logarithmic", False),
    )
    title = getattr(about, "title", name)
    x_label = (along or "index") if is_matrix else "step"
    drawings, data = [], []
    for number, (case, steps, values, columns, rows) in enumerate(panels):
        where = f"at step {steps[-1]}" if is_matrix else f"steps {steps[0]}-{steps[-1]}"
        drawings.append(
            charts.heat_map(
                values.tolist(),
                scale,
                identifier=f"{identifier}-{number}",
                title=case,
                description=f"{title} of {case} by {up} and {x_label}, {where}.",
                columns=columns,
                rows=rows,
                x_label=f"{x_label} ({where})" if is_matrix else x_label,
                y_label=up,
            )
        )
        for i, row in enumerate(rows):
            data.append([case, row, *map(_exact, values[i].tolist())])
    drawings.append(
        charts.colour_bar(scale, identifier=f"{identifier}-key", label=title)
    )
    widest = max(len(columns) for *_, columns, _ in panels)
    longest = next(columns for *_, columns, _ in panels if len(columns) == widest)
    data = [row + [""] * (widest + 2 - len(row)) for row in data]
    what = (
        "The last evaluation of each run"
        if is_matrix
        else "Depth upwards, steps across"
    )
    caption = (
        f"{name}. {what}; mean over finished runs, one scale for all cases; grey is "
        f"no number. {named_runs(results, list(maps))}"
    )
    return Figure(drawings, caption, Table("", ["case", up, *longest], data), title)


def _mean_probes(
    runs: Sequence[Outcome], name: str
) -> tuple[list[int], np.ndarray] | None:
    """Steps at which all runs were probed, and the means (steps, depth[, depth])."""
    if not runs:
        return None
    taken = [
        {s: row[name] for s, row in run.probes.items() if name in row} for run in runs
    ]
    steps = sorted(set.intersection(*map(set, taken)))
    if not steps:
        return None
    thinned = steps[:: math.ceil(len(steps) / _MOST_LOOKS)]
    steps = thinned if thinned[-1] == steps[-1] else [*thinned, steps[-1]]
    try:
        # JSON stores NaN as None.
        stack = np.array([[run[step] for step in steps] for run in taken], np.float64)
    except ValueError:
        return None  # The runs differ in shape, so there is no mean.
    if stack.ndim not in (3, 4) or 0 in stack.shape:
        return None
    return steps, stack.mean(axis=0)


def _depths(count: int, axis: str, *, across: bool) -> list[str]:
    """Names of the places along depth."""
    one = axis.partition(" x ")[2 if across else 0]
    has_end = axis in ("site", "layer x layer") and one in ("site", "layer")
    names = [str(i) for i in range(count)]
    return [*names[:-1], "end"] if has_end and count > 1 else names


def _exact(value: float | None) -> str:
    return "" if value is None else f"{value:.10g}"
