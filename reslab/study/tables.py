"""Tables of a report, the best case first: results, time and cost."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from reslab.study import figures, numbers
from reslab.study.comparison import (
    Row,
    censored_median,
    reaching_the_baseline,
)
from reslab.study.document import Table
from reslab.study.family import LEVEL
from reslab.study.results import (
    Outcome,
    Results,
)
from reslab.study.search import (
    best_factor,
    by_case,
    figures_by_factor,
    is_at_edge,
)


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
        "baseline, without compiling, evaluations and checkpoints. Curves are read off "
        "there, linear between evaluations, never beyond their ends. Times are those "
        "of the machines as they were: runs that shared one slowed each other. "
        f"{_method(results, rows)}"
    )
    return Table(caption, header, cells, emphasized=_best(results, rows))


def of_flops(results: Results, rows: Sequence[Row]) -> Table:
    """Compares cases at equal training FLOPs."""
    rows = ranked(results, rows)
    header, cells = _comparison_cells(results, rows)
    for row, line in zip(rows, cells, strict=True):
        at = numbers.DASH if row.at is None else f"{row.at:.4g}"
        line[5:5] = [at, numbers.number(row.against.mean if row.against else None)]
    header = [*header[:5], "FLOPs", "baseline then", *header[5:]]
    caption = (
        "At equal compute: the smallest training FLOPs of a case and its baseline, of "
        "matrix products, forward and backward. Where all runs end there, these are "
        "final figures; elsewhere curves are read off, with the dearer case in the "
        f"middle of its learning-rate schedule. {_method(results, rows)}"
    )
    return Table(caption, header, cells, emphasized=_best(results, rows))


def ranked(results: Results, rows: Sequence[Row]) -> list[Row]:
    """Sorts rows by their result, the best first, those whose runs diverged last."""

    def place(row: Row) -> tuple[bool, float]:
        found = row.summary.mean
        order = math.inf if found is None else results.headline.order(found)
        return row.diverged > 0, order

    return sorted(rows, key=place)


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
        steps, seconds = censored_median(row.steps), censored_median(row.seconds)
        reached = sum(step is not None for step in row.steps)
        cells.append(
            [
                row.case,
                f"{reached} of {len(row.steps)}",
                numbers.plain(steps),
                numbers.share(steps, row.baseline_steps),
                numbers.plain(seconds, factor),
                numbers.share(seconds, row.baseline_seconds),
            ]
        )
    caption = (
        "To where the baseline ends: median of the steps, and of the training time, "
        "until the held-out curve, linear between evaluations, reaches the mean end of "
        "the baseline's curves. A run that never does, or diverged, is later than all "
        f"others; {numbers.DASH}: half of the runs did not get there. "
        "The learning-rate schedule spans the whole run, so a run that "
        "was shorter by design might get there sooner."
    )
    return Table(caption, header, cells)


def of_search(results: Results) -> list[Table]:
    """Lists what a search found for every case, and what it chose; none without one."""
    field, runs = results.searches
    if not runs:
        return []
    factors = sorted({run.factor for run in runs if run.factor is not None})
    rows = []
    for case, found in by_case(runs).items():
        means = figures_by_factor(found)
        chosen = best_factor(found)
        told = f"x{chosen:g}"
        value = next((r.config.get(field) for r in results.of(case) if r.config), None)
        if isinstance(value, int | float):
            told = f"{value:.4g} ({told})"
        if min(means.values()) == math.inf:
            told += ", no run finished"
        elif is_at_edge(chosen, runs):
            told += ", at the edge"
        rows.append(
            [case, told, *(_searched(results, means.get(factor)) for factor in factors)]
        )
    seeds = sorted({run.seed for run in runs})
    caption = (
        f"Search of {field} for every case, on seeds that do not judge "
        f"({', '.join(map(str, seeds))}): mean final figure by multiple of the value "
        "in the config. Where the chosen one lies at the edge, a better one may lie "
        f"beyond. {numbers.DASH}: a run diverged, or has not ended."
    )
    header = ["case", "chosen", *(f"x{factor:g}" for factor in factors)]
    return [Table(caption, header, rows)]


def _searched(results: Results, order: float | None) -> str:
    if order is None or order == math.inf:
        return numbers.DASH
    return numbers.number(-order if results.headline.is_higher_better else order)


def _method(results: Results, rows: Sequence[Row]) -> str:
    if results.is_sequential:
        return (
            "Seeds were added until e-values of paired differences told a case from "
            "its baseline; intervals and p hold whenever one looks, corrected by "
            f"Bonferroni. {numbers.DASH}: too few seeds."
        )
    found = [row.comparison for row in rows if row.comparison]
    tested = [one for one in found if one.p is not None]
    end = "highest" if results.headline.is_higher_better else "lowest"
    text = (
        f"Best is the {end} mean of a case whose runs all finished. The first interval "
        "is of the difference; all of a table hold together with a probability of "
        f"{1 - LEVEL:.0%}, and the verdict is theirs. p: Dunnett's comparisons with "
        "the baseline, seeds as blocks, one spread for all cases, corrected for the "
        f"{numbers.counted(len(tested), 'comparison')} of this table; where spreads "
        "differ ('own'), the two cases' own, by Cochran's approximation with "
        f"Bonferroni's correction. {numbers.DASH}: cannot be computed (fewer than two "
        "finished runs, no figure there, or no variance at all)."
    )
    if results.margin is not None:
        text += (
            f" As good as: a difference of {results.margin:g} or more is excluded (two "
            f"one-sided tests at {LEVEL:.0%}, corrected likewise)."
        )
    return text


def _comparison_cells(
    results: Results, rows: Sequence[Row]
) -> tuple[list[str], list[list[str]]]:
    several = len({row.baseline for row in rows if row.baseline}) > 1
    header = ["case", "difference", "its 95% interval", "p", f"at {LEVEL:.0%}"]
    header += ["mean", "sd", "95% interval", "finished", "n", "spread"]
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
                numbers.p_value(found.p if found else None),
                verdict,
                numbers.number(one.mean),
                numbers.number(one.deviation),
                numbers.interval(one.low, one.high),
                _state(results.of(row.case)),
                str(one.count),
                spread(row),
            ]
        )
    return header, cells


def spread(row: Row) -> str:
    """Tells whether a comparison takes one spread for all cases, or its own."""
    found = row.comparison
    if found is None or found.p is None:
        return numbers.DASH
    return "all" if found.is_pooled else "own"


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
