"""Rows of a report's CSV files."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from reslab.runtime.text import spreadsheet_cell
from reslab.study import tables
from reslab.study.comparison import (
    Row,
    reaching_the_baseline,
)
from reslab.study.results import (
    Results,
)


def of_runs(results: Results, time: Sequence[Row]) -> list[list[Any]]:
    """Returns a header and a row per run."""
    places = {row.case: row.at for row in time}
    ends = {row.case: row.figure for row in reaching_the_baseline(results)}
    header = ["case", "seed", "directory", "state", "step", results.unit]
    metric, unit = results.headline.metric, results.unit.removesuffix("s")
    header += [f"eval_{metric}"]
    header += ["training_seconds", "equal_time_seconds", f"equal_time_{metric}"]
    header += ["steps_to_baseline", "seconds_to_baseline"]
    header += [f"{results.unit}_per_second", "parameters"]
    header += [f"training_flops_per_{unit}", "loss_spikes", "commit"]
    rows: list[list[Any]] = [header]
    for run in results.runs:
        at = places[run.case]
        step = run.rows[-1]["step"] if run.rows else None
        end = ends[run.case] if run.is_finished else None
        reached = None if end is None else run.step_reaching(end)
        rows.append(
            [
                run.case,
                run.seed,
                run.label,
                run.state,
                step,
                None if step is None else step * run.units_per_step,
                run.figure,
                run.seconds,
                at if run.is_finished else None,
                run.figure_at_time(at) if at is not None and run.is_finished else None,
                reached,
                None if reached is None else run.seconds_at(reached),
                tables.median_speed([run]),
                run.record.get("parameters"),
                run.training_flops_per_unit,
                run.loss_spikes,
                run.record.get("environment", {}).get("commit"),
            ]
        )
    return rows


def of_comparisons(places: Mapping[str, Sequence[Row]]) -> list[list[Any]]:
    """Returns a header and a row per comparison.

    Args:
      places: Rows by the unit in which they are equal.
    """
    header = ["at_equal", "at", "case", "baseline", "n", "mean", "sd", "low", "high"]
    header += ["baseline_n", "baseline_mean", "baseline_sd", "difference"]
    header += ["difference_low", "difference_high", "p", "p_equivalence", "spread"]
    header += ["diverged", "verdict"]
    rows: list[list[Any]] = [header]
    for name, table in places.items():
        for row in table:
            against = row.against[:3] if row.against else (None,) * 3
            found = row.comparison
            figures = (found.difference, found.low, found.high) if found else ()
            tests = (found.p, found.equivalence) if found else (None,) * 2
            rows.append(
                [
                    name,
                    row.at,
                    row.case,
                    row.baseline,
                    *row.summary,
                    *against,
                    *(figures or (None,) * 3),
                    *tests,
                    tables.spread(row) if found and found.p is not None else None,
                    row.diverged,
                    row.verdict,
                ]
            )
    return rows


def of_depth(results: Results) -> list[list[Any]]:
    """Returns a header and a row per value that runs were last probed for.

    Runs that are finished, or were never trained.

    A quantity by depth has a place, one by two depths two places; None of a row is a
    value that was not finite.
    """
    rows: list[list[Any]] = [
        ["case", "seed", "step", "quantity", "place", "other_place", "value"]
    ]
    for run in results.runs:
        last: dict[str, tuple[int, Any]] = {}
        for step, found in run.probes.items() if run.is_measured else ():
            last |= {name: (step, value) for name, value in found.items()}
        for name, (step, value) in sorted(last.items()):
            for places, one in _places(value):
                rows.append([run.case, run.seed, step, name, *places, one])
    return rows


def _places(value: Any) -> Iterator[tuple[tuple[int | None, int | None], Any]]:
    for place, one in enumerate(value if isinstance(value, list) else [value]):
        if not isinstance(value, list):
            yield (None, None), one
        elif not isinstance(one, list):
            yield (place, None), one
        else:
            yield from (((place, other), each) for other, each in enumerate(one))


def as_csv(rows: Sequence[Sequence[Any]]) -> str:
    """Writes rows as CSV, safe to open in a spreadsheet."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([spreadsheet_cell(cell) for cell in row] for row in rows)
    return text.getvalue()
