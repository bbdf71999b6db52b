"""The report of a study: one page, the same as Markdown, and the numbers as CSV."""

import os
import pathlib
from collections.abc import Mapping, Sequence

from reslab.core.errors import ReslabError
from reslab.runtime.files import make_directory, write_whole
from reslab.runtime.storage import local_path, storage_error
from reslab.study import (
    appendix,
    beginnings,
    figures,
    findings,
    profiles,
    spreadsheets,
    tables,
)
from reslab.study.comparison import (
    Row,
    at_equal_flops,
    at_equal_time,
    at_equal_units,
)
from reslab.study.document import MARK, Document, Section, Table, Text, to_markdown
from reslab.study.html import to_html
from reslab.study.results import (
    Results,
    read_results,
)

# Marks of a report's own files, in the order of writing; earlier ones began otherwise.
_MARKS = (
    (MARK, "<title>Report: "),
    (MARK, "# Report: "),
    ("case,seed,directory,",),
    ("at_equal,at,case,",),
    ("case,seed,step,quantity,",),
)


def write_report(
    paths: Sequence[str | pathlib.Path],
    out: str | pathlib.Path | None = None,
    *,
    baseline: str | None = None,
    margin: float | None = None,
    allow_mixed: bool = False,
    figures_folder: str | pathlib.Path | None = None,
) -> pathlib.Path:
    """Writes the report of a study, or of run directories.

    Beside the page stand the same as Markdown (`.md`), one row a run (`.csv`), one row
    a comparison (`-comparisons.csv`) and one row a value that was last probed
    (`-depth.csv`). The page needs no network.

    Args:
      paths: One study directory, or run directories.
      out: The page; `report.html` in the study or run, or here for several, if None.
      baseline: The case to compare with; by default what the study says, or the
        first run's.
      margin: Difference below which cases are as good as each other; by default what
        the study says.
      allow_mixed: Whether runs with different corpora or token budgets may stand in
        one table, which then says so.
      figures_folder: Where every figure is written for a paper, as SVG, PDF and PNG
        in two widths; the Markdown then shows them. No such files if None.

    Returns:
      Where the page is.

    Raises:
      ReslabError: If the runs cannot be read or compared, or nothing can be written.
    """
    page = default_page(paths) if out is None else local_path(out, "--out")
    results = read_results(
        paths, baseline=baseline, margin=margin, allow_mixed=allow_mixed
    )
    if page.suffix != ".html":
        raise ReslabError("--out", expected="a file name.html", got=str(page))
    places = _places(results)
    document = _document(results, places)
    files: dict[pathlib.Path, bytes] = {}
    pictures: dict[str, str] = {}
    if figures_folder is not None:
        # Imported here: matplotlib is an extra.
        from reslab.study import plots

        folder = local_path(figures_folder, "--figures")
        drawn = plots.drawn_figures(document.figures, folder)
        files = {folder / name: content for name, content in drawn.items()}
        pictures = {
            one.name: os.path.relpath(folder / plots.picture(one), page.parent)
            for one in document.figures
        }
    texts = {
        page: to_html(document),
        page.with_suffix(".md"): to_markdown(document, pictures),
        page.with_suffix(".csv"): spreadsheets.as_csv(
            spreadsheets.of_runs(results, places["time"])
        ),
        page.with_name(f"{page.stem}-comparisons.csv"): spreadsheets.as_csv(
            spreadsheets.of_comparisons(
                {"seconds" if name == "time" else name: r for name, r in places.items()}
            )
        ),
        page.with_name(f"{page.stem}-depth.csv"): spreadsheets.as_csv(
            spreadsheets.of_depth(results)
        ),
    }
    for written, marks in zip(texts, _MARKS, strict=True):
        if written.is_file() and not _begins_with(written, marks):
            raise ReslabError(
                f"{written}",
                expected="no file, or one that a report wrote",
                got="a file that reslab did not write",
                hint="--out OTHER.html",
            )
    # Figures first: what shows them must not be there without them.
    _write(files, "--figures DIR")
    _write(
        {path: text.encode("utf-8") for path, text in texts.items()}, "--out FILE.html"
    )
    return page


def _write(files: Mapping[pathlib.Path, bytes], hint: str) -> None:
    for path, content in files.items():
        try:
            make_directory(path.parent)
            write_whole(path, content)
        except OSError as error:
            raise storage_error(
                f"{path}", error, expected="a file that can be written", hint=hint
            ) from None


def _begins_with(path: pathlib.Path, marks: Sequence[str]) -> bool:
    with open(path, encoding="utf-8", errors="replace") as file:
        head = file.read(2000)
    return any(mark in head for mark in marks)


def default_page(paths: Sequence[str | pathlib.Path]) -> pathlib.Path:
    """`report.html` in the study or run; in the working directory for several."""
    folder = pathlib.Path(paths[0]) if len(paths) == 1 else pathlib.Path()
    return folder / "report.html"


def answer(
    paths: Sequence[str | pathlib.Path],
    *,
    baseline: str | None = None,
    margin: float | None = None,
    allow_mixed: bool = False,
) -> str:
    """The tables of the report, for a terminal.

    Raises:
      ReslabError: If the runs cannot be read or compared.
    """
    results = read_results(
        paths, baseline=baseline, margin=margin, allow_mixed=allow_mixed
    )
    blocks = [f"note: {mark}" for mark in results.marks]
    for name, rows in _places(results).items():
        table = _table(results, name, rows)
        title = f"held-out {results.headline.name} at equal {name}"
        blocks.append(f"{title}\n{table.text()}")
    return "\n\n".join(blocks)


def _places(results: Results) -> dict[str, list[Row]]:
    """The rows of every table, by what is equal in it."""
    found = {results.unit: at_equal_units(results)}
    if flops := at_equal_flops(results):
        found["FLOPs"] = flops
    return found | {"time": at_equal_time(results)}


def _table(results: Results, name: str, rows: Sequence[Row]) -> Table:
    kinds = {"FLOPs": tables.of_flops, "time": tables.of_time}
    return kinds.get(name, tables.of_units)(results, rows)


def _document(results: Results, places: Mapping[str, Sequence[Row]]) -> Document:
    # Imported here: the names of the quantities need every probe.
    from reslab.observe.probes import quantities

    found = profiles.measured(results, quantities())
    differences = [
        figures.differences(
            results,
            tables.ranked(results, rows),
            f"difference-{what}",
            f"Difference at equal {what}",
        )
        for what, rows in places.items()
    ]
    unseen = [Text("No run was looked into.")]
    sections = [
        Section(
            "Answer",
            [
                *findings.verdicts(results, places),
                *findings.survivors(results),
                *beginnings.warnings(results),
                *(Text(mark, "mark") for mark in results.marks),
                *(_table(results, name, rows) for name, rows in places.items()),
                tables.of_reaching(results),
                *tables.of_search(results),
                *(chart for chart in differences if chart),
            ],
        ),
        Section("Depth", profiles.at_the_end(results, found) or unseen),
        Section("Depth over time", profiles.over_time(results, found)),
        Section("Curves", figures.curves(results) or [Text("No run has a curve.")]),
        Section("Depth over steps", profiles.depth_maps(results, found)),
        Section("Beginnings", [begun] if (begun := beginnings.table(results)) else []),
        Section("Cost", [tables.of_cost(results)]),
        Section("Runs", appendix.runs(results)),
        Section("Configs", appendix.configs(results)),
        Section("Environment", appendix.environment(results)),
        Section("Repeat it", appendix.commands(results)),
    ]
    return Document(
        results.question or f"Report: {results.name}",
        [section for section in sections if section.parts],
        findings.facts(results),
    )
