"""Probe results by depth: profiles of each case, and maps over steps."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from reslab.observe import charts, scales
from reslab.study import numbers
from reslab.study.document import Figure, Table
from reslab.study.figures import counted_runs, distinct
from reslab.study.results import Outcome, Results

_MOST_LOOKS = 60
# Largest range that the first place may set, as a multiple of the others'.
_DOMINANT = 2.0


class Stack(NamedTuple):
    """A quantity of one case: over steps, then depth, perhaps twice.

    Attributes:
      steps: Steps at which all runs were probed.
      mean: Mean over runs, (steps, depth[, depth]).
      deviation: Standard deviation over runs, of that shape; None of one run.
    """

    steps: list[int]
    mean: np.ndarray
    deviation: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Measured:
    """A quantity of all cases.

    Attributes:
      name: Its name, `<probe>/<quantity>`.
      title: What it is.
      axis: What its values are ordered by.
      is_logarithmic: Whether its scale is.
      stacks: What was measured, by case.
    """

    name: str
    title: str
    axis: str
    is_logarithmic: bool
    stacks: Mapping[str, Stack]

    @property
    def identifier(self) -> str:
        """Returns the name as part of a file name."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")

    @property
    def is_matrix(self) -> bool:
        """Returns whether it has two axes along depth."""
        return any(stack.mean.ndim == 3 for stack in self.stacks.values())

    @property
    def place(self) -> str:
        """Returns the name of the axis along depth."""
        return self.axis.partition(" x ")[0]


def measured(results: Results, titles: Mapping[str, Any]) -> list[Measured]:
    """Reads the probes of runs that are finished or were never trained.

    Args:
      results: The study.
      titles: What each quantity is: objects with `title` and `axis`, and perhaps
        `is_logarithmic`. One that is not here goes by its own name.

    Returns:
      The quantities that any case has, in the order of `titles`.
    """
    seen = {
        name
        for run in results.runs
        if run.is_measured
        for row in run.probes.values()
        for name in row
    }
    ordered = [name for name in titles if name in seen]
    ordered += sorted(seen - set(titles))
    found = []
    for name in ordered:
        stacks = {
            case: stack
            for case in results.cases
            if (stack := _stack(results.measured(case), name))
        }
        about = titles.get(name)
        if stacks:
            found.append(
                Measured(
                    name,
                    getattr(about, "title", name),
                    getattr(about, "axis", "index"),
                    getattr(about, "is_logarithmic", False),
                    stacks,
                )
            )
    return found


def _stack(runs: Sequence[Outcome], name: str) -> Stack | None:
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
        values = np.array([[run[step] for step in steps] for run in taken], np.float64)
    except ValueError:
        return None  # The runs differ in shape, so there is no mean.
    if values.ndim not in (3, 4) or 0 in values.shape:
        return None
    deviation = values.std(axis=0, ddof=1) if len(runs) > 1 else None
    return Stack(steps, values.mean(axis=0), deviation)


def at_the_end(results: Results, quantities: Iterable[Measured]) -> list[Figure]:
    """Draws each quantity against depth as last measured, one line for each case."""
    found = []
    for one in quantities:
        if one.is_matrix:
            continue
        lasts = {case: [len(stack.steps) - 1] for case, stack in one.stacks.items()}
        found.append(_profile(results, one, lasts, "by-depth"))
    return found


def over_time(results: Results, quantities: Iterable[Measured]) -> list[Figure]:
    """Draws each quantity against depth when first, halfway and last measured."""
    found = []
    for one in quantities:
        if one.is_matrix:
            continue
        picked = {case: _spread(len(s.steps)) for case, s in one.stacks.items()}
        if max(map(len, picked.values())) > 1:
            found.append(_profile(results, one, picked, "over-time"))
    return found


def _spread(count: int) -> list[int]:
    """The first, middle and last of some indices."""
    return sorted({0, (count - 1) // 2, count - 1})


def _kind(results: Results) -> str:
    return "finished" if any(run.is_finished for run in results.runs) else "untrained"


def _profile(
    results: Results,
    one: Measured,
    picked: Mapping[str, Sequence[int]],
    suffix: str,
) -> Figure:
    """Lines over depth at some steps of each case, one panel for each, on one scale."""
    scale, left_out = _range(one, picked, has_bands=True)
    shown, told = distinct(results, list(one.stacks))
    panels = max(map(len, picked.values()))
    title, identifier = one.title, f"{one.identifier}-{suffix}"
    drawings: list[charts.Chart] = []
    for panel in range(panels):
        series, steps = [], set()
        for case in shown:
            stack, indices = one.stacks[case], picked[case]
            # A case that was measured less often ends with the others.
            index = indices[max(0, len(indices) - panels + panel)]
            steps.add(stack.steps[index])
            series.append(_series(case, stack, index, one.is_logarithmic))
        when = f"step {steps.pop():,}" if len(steps) == 1 else _WHEN[panels][panel]
        drawings.append(
            charts.LineChart(
                identifier=identifier if panels == 1 else f"{identifier}-{panel}",
                title=title if panels == 1 else when,
                description=f"{title} by depth, {when}: a line for each of "
                f"{len(series)} cases, bands of one standard deviation over seeds.",
                series=series,
                x_label=one.place,
                y_label="",
                is_log_y=scale.is_logarithmic,
                y_range=(scale.low, scale.high),
                is_panel=panels > 1,
            )
        )
    if panels > 1:
        drawings.append(
            charts.Legend(
                identifier=f"{identifier}-key",
                title="Cases",
                description="Cases by line.",
                names=list(shown),
            )
        )
        when = "when first, halfway and last measured, on one scale"
    when += ", logarithmic" if scale.is_logarithmic else ""
    caption = (
        f"{one.name} by depth, {when}. Mean over {_kind(results)} runs; bands are ±1 "
    )
    caption += "standard deviation over seeds"
    caption += ", as a factor" if scale.is_logarithmic else ""
    caption += f".{told}{left_out} "
    return Figure(
        drawings,
        caption + counted_runs(results, list(one.stacks)),
        Table("", ["case", "step", one.place, "mean", "sd"], _rows(one, picked)),
        title if panels > 1 else "",
    )


_WHEN = {
    1: ["at the last probe"],
    2: ["first probe", "last probe"],
    3: ["first probe", "middle", "last probe"],
}


def _series(case: str, stack: Stack, index: int, is_logarithmic: bool) -> charts.Series:
    mean = stack.mean[index]
    edges = [edge[index].tolist() for edge in _edges(stack, is_logarithmic)]
    low, high = edges or (None, None)
    return charts.Series(case, list(range(len(mean))), mean.tolist(), low, high)


def _edges(stack: Stack, is_logarithmic: bool) -> list[np.ndarray]:
    """The edges of a band of one standard deviation; [] of one run.

    On a logarithmic axis the band is a factor, so that it stays positive: the one of a
    lognormal distribution with this mean and deviation.
    """
    if stack.deviation is None:
        return []
    if not is_logarithmic:
        return [stack.mean - stack.deviation, stack.mean + stack.deviation]
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = np.exp(np.sqrt(np.log1p((stack.deviation / stack.mean) ** 2)))
    return [stack.mean / factor, stack.mean * factor]


def _rows(one: Measured, picked: Mapping[str, Sequence[int]]) -> list[list[str]]:
    rows = []
    for case, stack in one.stacks.items():
        for index in picked[case]:
            names = _places(stack.mean.shape[1], one.axis, across=False)
            for place, name in enumerate(names):
                spread = stack.deviation
                sd = None if spread is None else float(spread[index, place])
                mean = numbers.exact(float(stack.mean[index, place]))
                step = str(stack.steps[index])
                rows.append([case, step, name, mean, numbers.exact(sd)])
    return rows


def _range(
    one: Measured, picked: Mapping[str, Sequence[int]], *, has_bands: bool = False
) -> tuple[scales.Scale, str]:
    """The range of what is shown, and a caption of what lies outside of it.

    The first place along depth, often the embeddings, does not set it where it would
    make it more than twice as large.
    """
    whole, inner = [], []
    for case, stack in one.stacks.items():
        arrays = [stack.mean]
        if has_bands:
            arrays += _edges(stack, one.is_logarithmic)
        for array in arrays:
            values = array[list(picked[case])]
            # With two places the first is half of the data.
            start = 1 if values.shape[1] > 2 else 0
            whole += values.ravel().tolist()
            deeper = values[(slice(None), *[slice(start, None)] * (values.ndim - 1))]
            inner += deeper.ravel().tolist()
    scale = scales.common_scale(whole, is_logarithmic=one.is_logarithmic)
    without = scales.common_scale(inner, is_logarithmic=one.is_logarithmic)
    is_alike = without.is_logarithmic == scale.is_logarithmic
    is_known = is_alike and any(map(math.isfinite, inner)) and without.span > 0
    if not is_known or scale.span <= _DOMINANT * without.span:
        return scale, ""
    outside = []
    for case, stack in one.stacks.items():
        first = stack.mean[list(picked[case]), 0].ravel()
        first = first[(first < without.low) | (first > without.high)]
        if first.size:
            ends = dict.fromkeys(f"{v:.3g}" for v in (first.min(), first.max()))
            outside.append(f"{case} {' to '.join(ends)}")
    told = f" {one.place.capitalize()} 0 lies outside of the range, which it would "
    return without, f"{told}more than double: {', '.join(outside)}."


def depth_maps(results: Results, quantities: Iterable[Measured]) -> list[Figure]:
    """Draws each quantity over depth and steps, one map for each case, one scale.

    A quantity measured once is in the profiles already, unless it is a matrix.
    """
    return [
        _maps(results, one)
        for one in quantities
        if one.is_matrix or max(len(s.steps) for s in one.stacks.values()) > 1
    ]


def _maps(results: Results, one: Measured) -> Figure:
    panels = []
    for case, (steps, stack, _) in one.stacks.items():
        rows = _places(stack.shape[1], one.axis, across=False)
        if stack.ndim == 3:  # One matrix per evaluation: the last one is shown.
            values, columns = stack[-1], _places(stack.shape[2], one.axis, across=True)
        else:
            values, columns = stack.T, [str(step) for step in steps]
        panels.append((case, steps, values, columns, rows))
    shown = {
        case: [len(s.steps) - 1] if one.is_matrix else range(len(s.steps))
        for case, s in one.stacks.items()
    }
    scale, left_out = _range(one, shown)
    scale = scales.symmetric(scale)
    identifier = f"{one.identifier}-over-steps"
    x_label = (one.axis.partition(" x ")[2] or "index") if one.is_matrix else "step"
    drawings: list[charts.Chart] = []
    data = []
    for number, (case, steps, values, columns, rows) in enumerate(panels):
        where = (
            f"at step {steps[-1]}" if one.is_matrix else f"steps {steps[0]}-{steps[-1]}"
        )
        drawings.append(
            charts.HeatMap(
                identifier=f"{identifier}-{number}",
                title=case,
                description=f"{one.title} of {case} by {one.place} and {x_label}, "
                f"{where}.",
                values=values.tolist(),
                scale=scale,
                columns=columns,
                rows=rows,
                x_label=f"{x_label} ({where})" if one.is_matrix else x_label,
                y_label=one.place,
            )
        )
        for i, row in enumerate(rows):
            data.append([case, row, *map(numbers.exact, values[i].tolist())])
    drawings.append(
        charts.colour_bar(scale, identifier=f"{identifier}-key", label=one.title)
    )
    widest = max(len(columns) for *_, columns, _ in panels)
    longest = next(columns for *_, columns, _ in panels if len(columns) == widest)
    data = [row + [""] * (widest + 2 - len(row)) for row in data]
    what = (
        "The last evaluation of each run"
        if one.is_matrix
        else "Depth upwards, steps across"
    )
    signs = "; white is zero" if scale.is_diverging else ""
    caption = (
        f"{one.name}. {what}; mean over {_kind(results)} runs, one scale for all "
        f"cases; grey is no number{signs}.{left_out} "
    )
    caption += counted_runs(results, list(one.stacks))
    table = Table("", ["case", one.place, *longest], data)
    return Figure(drawings, caption, table, one.title)


def _places(count: int, axis: str, *, across: bool) -> list[str]:
    """Names of the places along depth."""
    one = axis.partition(" x ")[2 if across else 0]
    has_end = axis in ("site", "layer x layer") and one in ("site", "layer")
    names = [str(i) for i in range(count)]
    return [*names[:-1], "end"] if has_end and count > 1 else names
