"""Tables of a report, the best case first: results, time and cost."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from reslab.study import figures, numbers
from reslab.study.comparison import (
    LEVEL,
    Row,
    reaching_the_baseline,
)
from reslab.study.document import Table
from reslab.study.results import (
    Outcome,
    Results,
)
from reslab.study.statistics import summarize


def of_units(results: Results, rows: Sequence[Row]) -> Table:
    """Compares cases at equal training tokens, images or other units."""
    budgets = {run.budget for run in results.runs if run.is_finished}
    at = f"{min(budgets):,} training {results.unit}" if budgets else "no finished run"
    if len(budgets) > 1:
        at += ", the smallest budget, read off the curves: the budgets are mixed"
    caption = (
        f"At equal {results.unit} ({at}), means over seeds, the best first. "
        f"{_method(results, rows)}"
    )
    rows = ranked(results, rows)
    header, cells = _comparison_cells(results, rows)
    return Table(caption, header, cells, emphasized=_best(results, rows))


def of_time(results: Results, rows: Sequence[Row]) -> Table:
    """Compares cases at equal training time."""
    rows = ranked(results, rows)
    header, cells = _comparison_cells(results, rows)
    times = [row.at for row in rows if row.at is not None]
    unit, factor = figures.time_unit(max(times, default=0.0))
    for row, line in zip(rows, cells, strict=True):
        at = numbers.DASH if row.at is None else f"{row.at / factor:.4g}"
        base = numbers.number(row.against.mean if row.against else None)
        line[5:5] = [at, base]
    header = [*header[:5], f"time ({unit})", "baseline then", *header[5:]]
    caption = (
        "At equal time: the shortest training time of all runs of a case and its "
        "baseline, without compiling, evaluations and checkpoints. Curves on the first "
        "evaluation batches are read off there, linear between evaluations, never "
        "beyond their ends. Times are those of the machines as they were: runs that "
        f"shared one slowed each other. {_method(results, rows)}"
    )
    return Table(caption, header, cells, emphasized=_best(results, rows))


def ranked(results: Results, rows: Sequence[Row]) -> list[Row]:
    """Sorts rows by their result, the best first, those without one last."""

    def mean(row: Row) -> float:
        found = row.summary.mean
        return math.inf if found is None else results.headline.order(found)

    return sorted(rows, key=mean)


def _best(results: Results, rows: Sequence[Row]) -> list[int]:
    """Finds the first of ranked rows of a case that lost no run, if it has rivals."""
    whole = [
        number
        for number, row in enumerate(rows)
        if row.summary.mean is not None
        and len(results.finished(row.case)) == len(results.of(row.case))
    ]
    return whole[:1] if len(rows) > 1 else []


def of_reaching(results: Results) -> Table:
    """Lists when each case reaches the baseline's figure."""
    found = {row.case: row for row in reaching_the_baseline(results)}
    rows = [found[case] for case in figures.by_result(results, results.cases)]
    unit, factor = figures.time_unit(
        max((row.baseline_seconds or 0.0 for row in rows), default=0.0)
    )
    header = ["case", "reached it", "steps", "of the baseline's"]
    header += [f"time ({unit})", "of the baseline's"]
    cells = []
    for row in rows:
        steps, seconds = summarize(row.steps), summarize(row.seconds)
        cells.append(
            [
                row.case,
                f"{len(row.steps)} of {row.runs}",
                numbers.plain(steps.mean),
                numbers.share(steps.mean, row.baseline_steps),
                numbers.plain(seconds.mean, factor),
                numbers.share(seconds.mean, row.baseline_seconds),
            ]
        )
    caption = (
        "To where the baseline ends: mean steps and training time until the held-out "
        "curve on the first evaluation batches, linear between evaluations, reaches "
        "the mean end of the baseline's curves; over the runs that get there at all. "
        "The learning-rate schedule spans the whole run, so a run that "
        "was shorter by design might get there sooner."
    )
    return Table(caption, header, cells)


def _method(results: Results, rows: Sequence[Row]) -> str:
    tests = sum(row.corrected is not None for row in rows)
    count = numbers.counted(tests, "test")
    end = "highest" if results.headline.is_higher_better else "lowest"
    return (
        f"Best is the {end} mean of a case whose runs all finished; the column "
        f"'at {LEVEL:.0%}' says whether a difference is shown. Intervals are 95% t "
        "intervals; p is Welch's two-sided t-test against the baseline, corrected "
        f"by Holm over the {count} of this table. {numbers.DASH}: "
        "cannot be computed (fewer than two finished runs, no figure there, or no "
        "variance at all)."
    )


def _comparison_cells(
    results: Results, rows: Sequence[Row]
) -> tuple[list[str], list[list[str]]]:
    several = len({row.baseline for row in rows if row.baseline}) > 1
    header = ["case", "difference", "its 95% interval", "p (Holm)", f"at {LEVEL:.0%}"]
    header += ["mean", "sd", "95% interval", "finished", "n", "p"]
    cells = []
    for number, row in enumerate(rows):
        one, found = row.summary, row.comparison
        verdict = row.verdict
        if several and row.baseline:
            verdict += f" (to {row.baseline})"
        marks = ["best"] if number in _best(results, rows) else []
        marks += ["baseline"] if row.baseline is None and len(rows) > 1 else []
        cells.append(
            [
                f"{row.case} ({', '.join(marks)})" if marks else row.case,
                numbers.number(found.difference if found else None, "+"),
                numbers.interval(found.low, found.high, "+") if found else numbers.DASH,
                numbers.p_value(row.corrected),
                verdict,
                numbers.number(one.mean),
                numbers.number(one.deviation),
                numbers.interval(one.low, one.high),
                _state(results.of(row.case)),
                str(one.count),
                numbers.p_value(found.p if found else None),
            ]
        )
    return header, cells


def _state(runs: Sequence[Outcome]) -> str:
    finished = sum(run.is_finished for run in runs)
    text = f"{finished} of {len(runs)}"
    for state in ("diverged", "failed", "unfinished", "missing"):
        if count := sum(run.state == state for run in runs):
            text += f", {count} {state}"
    return text


def of_cost(results: Results) -> Table:
    """Lists speed, parameters, FLOPs and memory of each case."""
    memories = sorted({k for run in results.runs for k in _memory(run)})
    rows = []
    for case in figures.by_result(results, results.cases):
        runs = results.finished(case) or [r for r in results.of(case) if r.config]
        if not runs:
            rows.append([case, *[numbers.DASH] * (6 + len(memories))])
            continue
        record = runs[0].record
        count, flops = record.get("parameters"), runs[0].training_flops_per_unit
        width = np.dtype("float32").itemsize
        if runs[0].config["precision.parameters"] != "float32":
            width = {"bfloat16": 2, "float64": 8}[
                runs[0].config["precision.parameters"]
            ]
        times = [run.seconds for run in runs if run.is_finished and run.seconds]
        rows.append(
            [
                case,
                numbers.thousands(count),
                numbers.size(None if count is None else count * width),
                numbers.thousands(flops),
                numbers.DASH if flops is None else f"{flops * runs[0].budget:.3g}",
                numbers.thousands(median_speed(runs)),
                f"{statistics.fmean(times):.4g}" if times else numbers.DASH,
                *(numbers.size(_largest(runs, name)) for name in memories),
            ]
        )
    unit = results.unit.removesuffix("s")
    header = ["case", "parameters", "their bytes", f"training FLOPs/{unit}"]
    header += ["training FLOPs", f"{results.unit}/s", "training time (s)"]
    header += [f"memory: {name}" for name in memories]
    return Table(
        f"What a run of each case costs. {results.unit.capitalize()} per second: "
        "median over the rows of all its runs. Time: mean over finished runs, of "
        "training steps alone. FLOPs are those of matrix products, forward and "
        "backward.",
        header,
        rows,
    )


def _memory(run: Outcome) -> Mapping[str, Any]:
    memory = run.record.get("memory")
    return memory if isinstance(memory, dict) else {}


def _largest(runs: Sequence[Outcome], name: str) -> float | None:
    values = [_memory(run).get(name) for run in runs]
    return max((v for v in values if isinstance(v, int | float)), default=None)


def median_speed(runs: Sequence[Outcome]) -> float | None:
    """Returns the median units per second of runs; None without any."""
    values = [v for run in runs for v in run.values(f"{run.unit}_per_second")]
    return statistics.median(values) if values else None
