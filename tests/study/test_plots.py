"""Figures for a paper: every one, in both widths, with fonts that a printer accepts."""

import math
import re
import struct
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest

import reslab.study
from reslab.cli import main
from reslab.core.errors import ReslabError
from reslab.observe import charts
from reslab.observe.scales import Scale
from reslab.study.document import MARK, Figure, Table
from reslab.study.report import write_report

pytest.importorskip("matplotlib")
from reslab.study import plots


@pytest.fixture
def pair(tmp_path, study_writer):
    """Two cases; the name of one is hostile to TeX and to files."""
    bad = "$\\frac{a}$ <b> ../x"
    cases = {"pre": {}, bad: {"model__placement": "post", "level": 2.2}}
    return study_writer(tmp_path / "s", cases, seeds=2)


@pytest.mark.conformance
def test_every_figure_is_written_in_both_widths_and_shown(pair, tmp_path, capsys):
    folder = tmp_path / "my figures"
    assert main(["report", str(pair), "--figures", str(folder)]) == 0
    assert str(folder) in capsys.readouterr().out
    names = {path.name for path in folder.iterdir()}
    figures = {
        re.fullmatch(r"(.*)-(?:one|two)-column\.(?:svg|pdf|png)", name)[1]
        for name in names
    }
    assert {"stream-norm-by-depth", "stream-norm-over-time"} <= figures
    assert {"stream-norm-over-steps", "held-out-tokens"} <= figures
    assert len(figures) == 2 + 2 + 2 + 4 + 3
    assert len(names) == 6 * len(figures)
    check({path.name: path.read_bytes() for path in folder.iterdir()})
    markdown = (pair / "report.md").read_text()
    shown = re.findall(r"\]\((\.\./my%20figures/[\w-]+-two-column\.png)\)", markdown)
    assert len(shown) == len(figures)
    # A second time it replaces its own files, which are the same.
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    write_report([pair], figures_folder=folder)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.conformance
def test_figures_of_each_kind_are_drawn(tmp_path):
    names = {"title": "t $x_1$", "description": "", "x_label": "layer"}
    line = charts.Series("a", [0, 1, 2], [1.0, None, 3.0], [0.0] * 3, [4.0] * 3)
    panels = [
        charts.LineChart(
            identifier=f"lines-{i}",
            series=[line, line._replace(name="b")],
            y_label="",
            is_log_y=True,
            y_range=(0.5, 5.0),
            is_panel=True,
            **names,
        )
        for i in range(2)
    ]
    key = {"identifier": "lines-key", "title": "", "description": ""}
    scale = Scale(-1.0, 1.0, False)
    cells = charts.HeatMap(
        identifier="map-0",
        values=[[1.0, None], [-1.0, math.nan]],
        scale=scale,
        columns=["0", "1"],
        rows=["0", "end"],
        y_label="layer",
        **names,
    )
    table = Table("", ["a"], [])
    figures = [
        Figure([*panels, charts.Legend(names=["a", "b"], **key)], "", table),
        Figure(
            [cells, charts.colour_bar(scale, identifier="map-key", label="k")],
            "",
            table,
        ),
        Figure(
            [
                charts.IntervalChart(
                    identifier="intervals",
                    rows=[
                        charts.Interval("a" * 99, 1.0, 0.5, 1.5),
                        charts.Interval("b", None, None, None),
                    ],
                    **names,
                )
            ],
            "",
            table,
        ),
    ]
    drawn = plots.drawn_figures(figures, tmp_path)
    assert len(drawn) == 3 * 2 * 3
    assert {name.partition("-")[0] for name in drawn} == {"lines", "map", "intervals"}
    check(drawn)


def check(drawn):
    """Checks the widths and the fonts of figures, by the names of their files."""
    for name, content in drawn.items():
        assert MARK.encode() in content
        inches = 3.25 if "one-column" in name else 6.75
        if name.endswith("png"):
            width, _ = struct.unpack(">II", content[16:24])
            assert width == 300 * inches
        elif name.endswith("pdf"):
            # TrueType, never the Type 3 that publishers refuse.
            assert b"/FontFile2" in content and b"/Type3" not in content
            (width,) = re.findall(rb"/MediaBox \[ 0 0 ([\d.]+)", content)
            assert float(width) == 72 * inches
        else:
            root = ElementTree.fromstring(content)
            assert not list(root.iter("{http://www.w3.org/2000/svg}text"))  # Outlines.


def test_a_picture_of_somebody_else_is_not_overwritten(pair, tmp_path):
    folder = tmp_path / "figures"
    folder.mkdir()
    theirs = folder / "held-out-tokens-one-column.pdf"
    theirs.write_bytes(b"%PDF-1.4 mine")
    with pytest.raises(ReslabError, match="that reslab did not write"):
        write_report([pair], figures_folder=folder)
    assert theirs.read_bytes() == b"%PDF-1.4 mine"
    assert list(folder.iterdir()) == [theirs]
    assert not (pair / "report.html").exists()


def test_without_matplotlib_a_line_says_how_to_get_it(pair, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "reslab.study.plots", raising=False)
    monkeypatch.delattr(reslab.study, "plots", raising=False)
    assert main(["report", str(pair), "--figures", str(pair / "figures")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "'matplotlib'" in line and "pip install 'reslab[plots]'" in line
    assert not (pair / "figures").exists()


@pytest.mark.conformance
def test_a_report_without_figures_imports_no_matplotlib(pair):
    code = "import sys; from reslab.cli import main; main(sys.argv[1:]); "
    code += "assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, "report", str(pair)], check=True)
