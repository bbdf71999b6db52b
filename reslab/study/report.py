"""The report of a study: one page, the same as Markdown, and the numbers as CSV."""

import csv
import io
import json
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from reslab.core.errors import ReslabError
from reslab.runtime.files import make_directory, write_whole
from reslab.runtime.storage import local_path, storage_error
from reslab.runtime.text import spreadsheet_cell
from reslab.study import figures
from reslab.study.comparison import (
    LEVEL,
    Row,
    at_equal_time,
    at_equal_tokens,
    reaching_the_baseline,
)
from reslab.study.document import Document, Section, Table, Text, to_markdown
from reslab.study.html import to_html
from reslab.study.results import (
    Outcome,
    Results,
    differing_fields,
    read_results,
    short_names,
)
from reslab.study.statistics import summarize

_DASH = "—"
_TITLE = "Report: "
# What a report's own files begin with, in the order in which they are written.
_MARKS = (
    f"<title>{_TITLE}",
    f"# {_TITLE}",
    "case,seed,directory,",
    "at_equal,at,case,",
)


def write_report(
    paths: Sequence[str | pathlib.Path],
    out: str | pathlib.Path | None = None,
    *,
    baseline: str | None = None,
    allow_mixed: bool = False,
) -> pathlib.Path:
    """Writes the report of a study, or of run directories.

    Beside the page stand the same as Markdown (`.md`), one row a run (`.csv`) and
    one row a comparison (`-comparisons.csv`). The page needs no network.

    Args:
      paths: One study directory, or run directories.
      out: The page; `report.html` in the study, or here for plain runs, if None.
      baseline: The case to compare with; by default what the study says, or the
        first run's.
      allow_mixed: Whether runs with different corpora or token budgets may stand in
        one table, which then says so.

    Returns:
      Where the page is.

    Raises:
      ReslabError: If the runs cannot be read or compared, or nothing can be written.
    """
    page = default_page(paths) if out is None else local_path(out, "--out")
    results = read_results(paths, baseline=baseline, allow_mixed=allow_mixed)
    if page.suffix != ".html":
        raise ReslabError("--out", expected="a file name.html", got=str(page))
    tokens, time = at_equal_tokens(results), at_equal_time(results)
    document = _document(results, tokens, time)
    texts = {
        page: to_html(document),
        page.with_suffix(".md"): to_markdown(document),
        page.with_suffix(".csv"): _csv(_run_rows(results, time)),
        page.with_name(f"{page.stem}-comparisons.csv"): _csv(
            _comparison_rows(tokens, time)
        ),
    }
    for written, mark in zip(texts, _MARKS, strict=True):
        if written.is_file() and not _begins_with(written, mark):
            raise ReslabError(
                f"{written}",
                expected="no file, or one that a report wrote",
                got="somebody's own, which would be overwritten",
                hint="--out OTHER.html",
            )
    try:
        make_directory(page.parent)
        for path, text in texts.items():
            write_whole(path, text)
    except OSError as error:
        raise storage_error(
            f"{page}",
            error,
            expected="a file that can be written",
            hint="--out FILE.html",
        ) from None
    return page


def _begins_with(path: pathlib.Path, mark: str) -> bool:
    with open(path, encoding="utf-8", errors="replace") as file:
        return mark in file.read(2000)


def default_page(paths: Sequence[str | pathlib.Path]) -> pathlib.Path:
    """`report.html` in the study; in the working directory for plain runs."""
    folders = [pathlib.Path(path) for path in paths]
    is_study = len(folders) == 1 and (folders[0] / "study.json").is_file()
    return (folders[0] if is_study else pathlib.Path()) / "report.html"


def answer(
    paths: Sequence[str | pathlib.Path],
    *,
    baseline: str | None = None,
    allow_mixed: bool = False,
) -> str:
    """The tables of the report, for a terminal.

    Raises:
      ReslabError: If the runs cannot be read or compared.
    """
    results = read_results(paths, baseline=baseline, allow_mixed=allow_mixed)
    blocks = [f"note: {mark}" for mark in results.marks]
    for name, table in (
        ("equal tokens", _tokens_table(results, at_equal_tokens(results))),
        ("equal time", _time_table(results, at_equal_time(results))),
    ):
        blocks.append(f"held-out bits per byte at {name}\n{table.text()}")
    return "\n\n".join(blocks)


def _document(results: Results, tokens: Sequence[Row], time: Sequence[Row]) -> Document:
    # Imported here: the names of the quantities need every probe.
    from reslab.observe.probes import quantities

    charts = [
        figures.differences(
            results, tokens, "difference-tokens", "Difference at equal tokens"
        ),
        figures.differences(
            results, time, "difference-time", "Difference at equal time"
        ),
    ]
    maps = figures.depth_maps(results, quantities())
    sections = [
        _question(results),
        Section(
            "Answer",
            [
                *_verdicts(results, tokens, time),
                *_survivors(results),
                *(Text(mark, "mark") for mark in results.marks),
                _tokens_table(results, tokens),
                _time_table(results, time),
                _reach_table(results),
                *(chart for chart in charts if chart),
            ],
        ),
        Section("Curves", figures.curves(results) or [Text("No run has a curve.")]),
        Section("Depth over steps", maps or [Text("No run was looked into.")]),
        Section("Cost", [_cost_table(results)]),
        Section("Runs", _runs(results)),
        Section("Configs", _configs(results)),
        Section("Environment", _environment(results)),
        Section("Repeat it", _commands(results)),
    ]
    return Document(_TITLE + results.name, sections)


def _question(results: Results) -> Section:
    finished = sum(run.is_finished for run in results.runs)
    parts = [
        Text(results.question or "These runs were given without a question."),
        Text(
            f"{_count(len(results.cases), 'case')}, {finished} of "
            f"{_count(len(results.runs), 'run')} finished. All figures are held-out "
            "bits per byte unless named otherwise; lower is better."
        ),
    ]
    return Section("Question", parts)


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def _unfinished(results: Results, row: Row) -> str:
    """Says of how few runs a figure is, where not all of them finished."""
    told = ""
    for case in (row.case, row.baseline or row.case):
        runs, finished = results.of(case), results.finished(case)
        if len(finished) < len(runs) and case not in told:
            told += f"; only {len(finished)} of {len(runs)} runs of {case} finished"
    return told


def _verdicts(
    results: Results, tokens: Sequence[Row], time: Sequence[Row]
) -> list[Text]:
    """Writes the findings, one sentence for each table that decides something."""
    texts = []
    for name, rows in (("tokens", tokens), ("time", time)):
        compared = [row for row in rows if row.baseline is not None]
        if not compared:
            continue
        decided = []
        for row in compared:
            if row.verdict in ("better", "worse") and row.comparison:
                found = row.comparison
                decided.append(
                    f"{row.case} is {row.verdict} than {row.baseline} by "
                    f"{abs(found.difference):.4f} (p {_p(row.corrected)}"
                    f"{_unfinished(results, row)})"
                )
        untold = [row.case for row in compared if row.verdict == "cannot tell"]
        text = ""
        if len(untold) < len(compared):
            said = "; ".join(decided) or "no difference is shown"
            text = f"At equal {name}, at the {LEVEL:.0%} level after Holm's "
            text += f"correction: {said}."
        if untold:
            text += f" Nothing can be told of {', '.join(untold)}: too few figures."
        texts.append(Text(text))
    return texts


def _survivors(results: Results) -> list[Text]:
    """A warning where means are over the runs that survived."""
    lost = [run for run in results.runs if not run.is_finished]
    if not lost:
        return []
    cases = ", ".join(dict.fromkeys(run.case for run in lost))
    return [
        Text(
            f"{_count(len(lost), 'run')} did not finish ({cases}). Means are over "
            "finished runs only: a case whose runs diverge looks better than it is.",
            "mark",
        )
    ]


def _tokens_table(results: Results, rows: Sequence[Row]) -> Table:
    budgets = {run.budget for run in results.runs if run.is_finished}
    at = f"{min(budgets):,} training tokens" if budgets else "no finished run"
    if len(budgets) > 1:
        at += ", the smallest budget, read off the curves: the budgets are mixed"
    caption = f"At equal tokens ({at}), means over seeds. {_method(rows)}"
    header, cells = _comparison_cells(results, rows)
    return Table(caption, header, cells)


def _time_table(results: Results, rows: Sequence[Row]) -> Table:
    header, cells = _comparison_cells(results, rows)
    times = [row.at for row in rows if row.at is not None]
    unit, factor = figures.time_unit(max(times, default=0.0))
    for row, line in zip(rows, cells, strict=True):
        at = _DASH if row.at is None else f"{row.at / factor:.4g}"
        base = _number(row.against.mean if row.against else None)
        line[2:2] = [at, base]
    header = [*header[:2], f"time ({unit})", "baseline then", *header[2:]]
    caption = (
        "At equal time: the shortest training time of all runs of a case and its "
        "baseline, without compiling, evaluations and checkpoints. Curves on the first "
        "evaluation batches are read off there, linear between evaluations, never "
        "beyond their ends. Times are those of the machines as they were: runs that "
        f"shared one slowed each other. {_method(rows)}"
    )
    return Table(caption, header, cells)


def _reach_table(results: Results) -> Table:
    rows = reaching_the_baseline(results)
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
                _plain(steps.mean),
                _share(steps.mean, row.baseline_steps),
                _plain(seconds.mean, factor),
                _share(seconds.mean, row.baseline_seconds),
            ]
        )
    caption = (
        "To where the baseline ends: mean steps and training time until the held-out "
        "curve on the first evaluation batches, linear between evaluations, is down to "
        "the mean end of the baseline's curves; over the runs that get there at all. "
        "The schedule of the learning rate is that of the whole run, so a run that "
        "was shorter by design might get there sooner."
    )
    return Table(caption, header, cells)


def _plain(value: float | None, unit: float = 1.0) -> str:
    return _DASH if value is None else f"{value / unit:.4g}"


def _share(value: float | None, whole: float | None) -> str:
    return f"{value / whole:.2f}" if value is not None and whole else _DASH


def _method(rows: Sequence[Row]) -> str:
    tests = sum(row.corrected is not None for row in rows)
    return (
        "Intervals are 95% t intervals; p is Welch's two-sided t-test against the "
        f"baseline, corrected by Holm over the {_count(tests, 'test')} of this table. "
        f"{_DASH}: cannot be computed (fewer than two finished runs, no figure there, "
        "or no variance at all)."
    )


def _comparison_cells(
    results: Results, rows: Sequence[Row]
) -> tuple[list[str], list[list[str]]]:
    several = len({row.baseline for row in rows if row.baseline}) > 1
    header = ["case", "finished", "n", "mean", "sd", "95% interval", "difference"]
    header += ["its 95% interval", "p", "p (Holm)", f"at {LEVEL:.0%}"]
    cells = []
    for row in rows:
        one, found = row.summary, row.comparison
        verdict = row.verdict
        if several and row.baseline:
            verdict += f" (to {row.baseline})"
        cells.append(
            [
                row.case,
                _state(results.of(row.case)),
                str(one.count),
                _number(one.mean),
                _number(one.deviation),
                _interval(one.low, one.high),
                _number(found.difference if found else None, "+"),
                _interval(found.low, found.high, "+") if found else _DASH,
                _p(found.p if found else None),
                _p(row.corrected),
                verdict,
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


def _number(value: float | None, sign: str = "") -> str:
    return _DASH if value is None else f"{value:{sign}.4f}"


def _interval(low: float | None, high: float | None, sign: str = "") -> str:
    if low is None or high is None:
        return _DASH
    return f"[{low:{sign}.4f}, {high:{sign}.4f}]"


def _p(p: float | None) -> str:
    if p is None:
        return _DASH
    return "<1e-6" if p < 1e-6 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def _cost_table(results: Results) -> Table:
    memories = sorted({k for run in results.runs for k in _memory(run)})
    rows = []
    for case in results.cases:
        runs = results.finished(case) or [r for r in results.of(case) if r.config]
        if not runs:
            rows.append([case, *[_DASH] * (6 + len(memories))])
            continue
        record = runs[0].record
        count, flops = record.get("parameters"), record.get("training_flops_per_token")
        width = np.dtype("float32").itemsize
        if runs[0].config["precision.parameters"] != "float32":
            width = {"bfloat16": 2, "float64": 8}[
                runs[0].config["precision.parameters"]
            ]
        times = [run.seconds for run in runs if run.is_finished and run.seconds]
        rows.append(
            [
                case,
                _thousands(count),
                _bytes(None if count is None else count * width),
                _thousands(flops),
                _DASH if flops is None else f"{flops * runs[0].budget:.3g}",
                _thousands(_median_speed(runs)),
                f"{statistics.fmean(times):.4g}" if times else _DASH,
                *(_bytes(_largest(runs, name)) for name in memories),
            ]
        )
    header = ["case", "parameters", "their bytes", "training FLOPs/token"]
    header += ["training FLOPs", "tokens/s", "training time (s)"]
    header += [f"memory: {name}" for name in memories]
    return Table(
        "What a run of each case costs. Tokens per second: median over the rows of all "
        "its runs. Time: mean over finished runs, of training steps alone. FLOPs are "
        "those of matrix products, forward and backward.",
        header,
        rows,
    )


def _memory(run: Outcome) -> Mapping[str, Any]:
    memory = run.record.get("memory")
    return memory if isinstance(memory, dict) else {}


def _largest(runs: Sequence[Outcome], name: str) -> float | None:
    values = [_memory(run).get(name) for run in runs]
    return max((v for v in values if isinstance(v, int | float)), default=None)


def _median_speed(runs: Sequence[Outcome]) -> float | None:
    values = [v for run in runs for v in run.values("tokens_per_second")]
    return statistics.median(values) if values else None


def _thousands(value: float | None) -> str:
    return _DASH if value is None else f"{value:,.0f}"


def _bytes(value: float | None) -> str:
    if value is None:
        return _DASH
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} GiB"


def _runs(results: Results) -> list[Table | Text]:
    others = [run for run in results.runs if not run.is_finished]
    header = ["case", "seed", "directory", "state", "step", "bits per byte"]
    rows = [
        [
            run.case,
            str(run.seed),
            run.label,
            run.state,
            f"{run.rows[-1]['step']:,}" if run.rows else _DASH,
            _number(run.bits_per_byte),
        ]
        for run in results.runs
    ]
    parts: list[Table | Text] = []
    if others:
        failures = [
            [r.case, str(r.seed), r.label, r.state, r.message or _DASH] for r in others
        ]
        parts.append(
            Table("Runs that did not finish.", [*header[:4], "message"], failures)
        )
    else:
        parts.append(Text("Every run finished."))
    parts.append(Table("All runs.", header, rows, is_folded=True))
    return parts


def _configs(results: Results) -> list[Table | Text]:
    firsts = {run.case: run.config for run in reversed(results.present)}
    cases = [case for case in results.cases if case in firsts]
    everywhere = [run.config for run in results.present]
    differing = [k for k in differing_fields(everywhere) if k != "seed"]
    parts: list[Table | Text] = []
    if differing:
        rows = [[c, *(_value(firsts[c].get(key)) for key in differing)] for c in cases]
        caption = "Fields in which the cases differ, besides the seed."
        parts.append(Table(caption, ["case", *differing], rows))
    else:
        parts.append(Text("All runs have the same config, apart from the seed."))
    if cases:
        shared = firsts[cases[0]]
        constant = [
            [k, _value(shared[k])] for k in sorted(shared) if k not in differing
        ]
        constant = [row for row in constant if row[0] != "seed"]
        title = f"The {len(constant)} fields that are the same in all runs."
        parts.append(Table(title, ["field", "value"], constant, is_folded=True))
    return parts


def _value(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)


def _environment(results: Results) -> list[Table | Text]:
    found = [(run, _surroundings(run)) for run in results.present if run.record]
    if not found:
        return [Text("No run recorded its environment.")]
    parts: list[Table | Text] = []
    differing = differing_fields([about for _, about in found])
    if differing:
        rows = []
        for key in differing:
            by_value: dict[str, list[str]] = {}
            for run, about in found:
                value = about.get(key, _DASH)
                by_value.setdefault(value, []).append(run.label)
            rows += [[key, value, ", ".join(runs)] for value, runs in by_value.items()]
        names = ", ".join(short_names(differing).values())
        parts.append(Text(f"The runs were not made alike: {names} differ.", "mark"))
        parts.append(
            Table("Where they differ.", ["what", "value", "directories"], rows)
        )
    shared = found[0][1]
    rows = [[key, value] for key, value in shared.items() if key not in differing]
    parts.append(Table("The same in all runs.", ["what", "value"], rows))
    return parts


def _surroundings(run: Outcome) -> dict[str, str]:
    """Returns the environment of a run, flat."""
    about: dict[str, str] = {}
    environment = dict(run.record.get("environment", {}))
    versions = environment.pop("versions", {})
    about["commit"] = str(environment.pop("commit", None) or "not in a checkout")
    for group in (environment, versions):
        for key, value in group.items():
            about[key] = value if isinstance(value, str) else json.dumps(value)
    for key in ("mesh", "compute_dtype"):
        if key in run.record:
            value = run.record[key]
            about[key] = value if isinstance(value, str) else json.dumps(value)
    corpus = run.record.get("corpus", {})
    if corpus:
        about["corpus"] = str(corpus.get("sha256"))
    return about


def _commands(results: Results) -> list[Table | Text]:
    if results.command:
        return [Text(results.command, "code")]
    commands = [str(run.record.get("command", "")) for run in results.present]
    known = list(dict.fromkeys(command for command in commands if command))
    return [Text("\n".join(known), "code")] if known else [Text("Not recorded.")]


def _run_rows(results: Results, time: Sequence[Row]) -> list[list[Any]]:
    places = {row.case: row.at for row in time}
    ends = {row.case: row.bits for row in reaching_the_baseline(results)}
    header = ["case", "seed", "directory", "state", "step", "tokens", "eval_bpb"]
    header += ["training_seconds", "equal_time_seconds", "equal_time_bpb"]
    header += ["steps_to_baseline", "seconds_to_baseline"]
    header += ["tokens_per_second", "parameters", "training_flops_per_token", "commit"]
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
                None if step is None else step * run.tokens_per_step,
                run.bits_per_byte,
                run.seconds,
                at if run.is_finished else None,
                run.bits_at_time(at) if at is not None and run.is_finished else None,
                reached,
                None if reached is None else run.seconds_at(reached),
                _median_speed([run]),
                run.record.get("parameters"),
                run.record.get("training_flops_per_token"),
                run.record.get("environment", {}).get("commit"),
            ]
        )
    return rows


def _comparison_rows(tokens: Sequence[Row], time: Sequence[Row]) -> list[list[Any]]:
    header = ["at_equal", "at", "case", "baseline", "n", "mean", "sd", "low", "high"]
    header += ["baseline_n", "baseline_mean", "baseline_sd", "difference"]
    header += ["difference_low", "difference_high", "p", "p_holm", "verdict"]
    rows: list[list[Any]] = [header]
    for name, table in (("tokens", tokens), ("seconds", time)):
        for row in table:
            against = row.against[:3] if row.against else (None,) * 3
            found = row.comparison or (None,) * 4
            rows.append(
                [
                    name,
                    row.at,
                    row.case,
                    row.baseline,
                    *row.summary,
                    *against,
                    *found,
                    row.corrected,
                    row.verdict,
                ]
            )
    return rows


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([spreadsheet_cell(cell) for cell in row] for row in rows)
    return text.getvalue()
