"""The report of a study: one page, the same as Markdown, and the numbers as CSV."""

import pathlib
from collections.abc import Sequence

from reslab.core.errors import ReslabError
from reslab.runtime.files import make_directory, write_whole
from reslab.runtime.storage import local_path, storage_error
from reslab.study import appendix, figures, numbers, spreadsheets, tables
from reslab.study.comparison import (
    LEVEL,
    Row,
    at_equal_time,
    at_equal_tokens,
)
from reslab.study.document import Document, Section, Text, to_markdown
from reslab.study.html import to_html
from reslab.study.results import (
    Results,
    read_results,
)

_TITLE = "Report: "
# First lines of a report's own files, in the order of writing.
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
      out: The page; `report.html` in the study or run, or here for several, if None.
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
        page.with_suffix(".csv"): spreadsheets.as_csv(
            spreadsheets.of_runs(results, time)
        ),
        page.with_name(f"{page.stem}-comparisons.csv"): spreadsheets.as_csv(
            spreadsheets.of_comparisons(tokens, time)
        ),
    }
    for written, mark in zip(texts, _MARKS, strict=True):
        if written.is_file() and not _begins_with(written, mark):
            raise ReslabError(
                f"{written}",
                expected="no file, or one that a report wrote",
                got="a file that reslab did not write",
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
    """`report.html` in the study or run; in the working directory for several."""
    folder = pathlib.Path(paths[0]) if len(paths) == 1 else pathlib.Path()
    return folder / "report.html"


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
        ("equal tokens", tables.of_tokens(results, at_equal_tokens(results))),
        ("equal time", tables.of_time(results, at_equal_time(results))),
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
                tables.of_tokens(results, tokens),
                tables.of_time(results, time),
                tables.of_reaching(results),
                *(chart for chart in charts if chart),
            ],
        ),
        Section("Curves", figures.curves(results) or [Text("No run has a curve.")]),
        Section("Depth over steps", maps or [Text("No run was looked into.")]),
        Section("Cost", [tables.of_cost(results)]),
        Section("Runs", appendix.runs(results)),
        Section("Configs", appendix.configs(results)),
        Section("Environment", appendix.environment(results)),
        Section("Repeat it", appendix.commands(results)),
    ]
    return Document(_TITLE + results.name, sections)


def _question(results: Results) -> Section:
    finished = sum(run.is_finished for run in results.runs)
    parts = [
        Text(results.question or "These runs were given without a question."),
        Text(
            f"{numbers.counted(len(results.cases), 'case')}, {finished} of "
            f"{numbers.counted(len(results.runs), 'run')} finished. All figures are "
            "held-out bits per byte unless named otherwise; lower is better."
        ),
    ]
    return Section("Question", parts)


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
                    f"{abs(found.difference):.4f} (p {numbers.p_value(row.corrected)}"
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
            f"{numbers.counted(len(lost), 'run')} did not finish ({cases}). Means are "
            "over finished runs only: a case whose runs diverge looks better than "
            "it is.",
            "mark",
        )
    ]
