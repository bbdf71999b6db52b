"""The report as files: complete, honest about failures, and safe to open."""

import csv
import html.parser
import json
import re

import numpy as np
import pytest

from reslab.cli import main
from reslab.core.errors import ReslabError
from reslab.study.document import Document, Section, Text, to_markdown
from reslab.study.report import answer, write_report


@pytest.fixture
def page(places):
    return write_report([places])


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


class Balance(html.parser.HTMLParser):
    """Checks that elements close in the order in which they opened."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.texts = [], [], []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "br"):
            self.open.append(tag)
        self.ids += [value for key, value in attributes if key == "id"]

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def parse(page):
    parser = Balance()
    parser.feed(page.read_text())
    assert not parser.open
    assert len(set(parser.ids)) == len(parser.ids)
    return parser


def test_everything_is_written_beside_the_study(places, page):
    assert page == places / "report.html"
    for name in ("report.md", "report.csv", "report-comparisons.csv"):
        assert (places / name).stat().st_size > 100
    assert not list(places.glob("*.partial"))


def test_the_page_is_whole_and_needs_no_network(page):
    text = page.read_text()
    parse(page)
    assert "<script" not in text
    without_names = text.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"(?:src|href)=(?!\"#)|https?://|@import", without_names)
    assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", text)


def test_the_page_answers_every_heading(page):
    words = " ".join(parse(page).texts)
    for heading in ("Answer", "Depth", "Curves", "Depth over steps", "Cost", "Runs"):
        assert heading in words
    assert "Does the place of the norm matter" in words
    assert "1 of 3, 1 diverged, 1 missing" in words
    assert "loss is not finite" in words
    assert "reslab sweep places.py" in words
    assert "0123456789abcdef" in words
    assert "model.placement" in words
    # Two differences, two profiles, two of three panels, four curves, maps of three.
    assert page.read_text().count("<svg") == 2 + 2 + 2 * (3 + 1) + 4 + 3 * (4 + 1)


def test_every_figure_says_of_how_many_runs_it_is(page):
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page.read_text())
    assert len(captions) == 2 + 2 + 2 + 4 + 3
    for caption in captions:
        assert "n: pre 3, post 3, hyper with four streams 3, deep 1." in caption


def test_the_title_is_the_question_and_what_was_run_comes_first(page):
    text = page.read_text()
    assert "<title>Does the place of the norm matter at depth 4?</title>" in text
    lead = " ".join(re.findall(r"<dd>(.*?)</dd>", text))
    assert "places: 4 cases, 10 of 12 runs finished" in lead
    assert "CPU" in lead
    assert "lm, depth 4 to 8, width 128, 852,352 parameters" in lead
    assert "51,200 for each run: 100 steps of 4 x 128" in lead
    assert "reslab sweep places.py" in lead
    assert page.with_suffix(".md").read_text().count("\n# Does the place") == 1


def test_every_section_is_linked_from_the_contents(page):
    text = page.read_text()
    links = re.findall(r'<a href="#([\w-]+)">', text)
    assert links == re.findall(r'<section id="([\w-]+)">', text)
    assert "answer" in links and "depth" in links
    markdown = page.with_suffix(".md").read_text()
    assert re.findall(r"\]\(#([\w-]+)\)", markdown) == links


def test_directories_are_named_under_runs_alone(page):
    for text, heading in (
        (page.read_text(), '<section id="runs">'),
        (page.with_suffix(".md").read_text(), "\n## Runs\n"),
    ):
        before, _, after = text.partition(heading)
        assert not re.findall(r"\b0000000000[0-9a-f]{2}\b", before)
        assert "000000000003" in after


def test_tables_are_in_order_of_the_result(page):
    table = re.search(r"<tbody>(.*?)</tbody>", page.read_text(), re.DOTALL)[1]
    cases = re.findall(r"<th[^>]*>(.*?)</th>", table)
    # A case whose runs diverge is the last, whatever the mean of the others.
    assert cases == ["hyper with four streams (best)", "pre (baseline)", "post", "deep"]
    best = re.search(r'<tr class="best">(.*?)</tr>', table, re.DOTALL)[1]
    assert "hyper with four streams" in best
    header = re.search(r"<thead>(.*?)</thead>", page.read_text(), re.DOTALL)[1]
    names = re.findall(r">([^<]+)</th>", header)
    assert names[:3] == ["case", "difference", "its 95% interval"]


def test_a_finding_is_a_sentence_with_its_size(page):
    (found,) = re.findall(r"<p>(At equal tokens, post is .*?)</p>", page.read_text())
    match = re.fullmatch(
        r"At equal tokens, post is worse than pre by (.*)% \(95% interval (.*)% to "
        r"(.*)%; \+(.*) bits per byte, p .*, n = 3 and 3\)\.",
        found,
    )
    size, low, high, bits = map(float, match.groups())
    assert 0 < low < size < high
    rows = rows_of(page.with_name("report-comparisons.csv"))
    row = next(r for r in rows if r["case"] == "post")
    np.testing.assert_allclose(bits, float(row["difference"]), atol=6e-5)
    share = 100 * float(row["difference"]) / float(row["baseline_mean"])
    np.testing.assert_allclose(size, share, atol=0.06)


def test_many_cases_are_not_all_drawn(tmp_path, study_writer):
    levels = {f"case {i}": {"level": 2 + i / 10, "noise": 0.0} for i in range(12)}
    cases = {name: {"model__depth": i + 1} for i, name in enumerate(levels)}
    for name, about in levels.items():
        cases[name] |= about
    folder = study_writer(tmp_path / "s", cases, baseline="case 5")
    text = write_report([folder]).read_text()
    caption = next(c for c in re.findall(r"<figcaption>(.*?)<", text) if "best" in c)
    assert "Of 12 cases" in caption and caption.endswith("n = 3 each.")
    chart = text[text.index("Held-out bits per byte over training tokens") :]
    drawn = re.findall(r">(case \d+)<", chart[: chart.index("</svg>")])
    assert drawn == [f"case {i}" for i in (5, 0, 1, 2, 3, 9, 10, 11)]


def test_a_file_of_somebody_else_is_not_overwritten(tmp_path, places):
    names = ("x.html", "x.md", "x.csv", "x-comparisons.csv", "x-depth.csv")
    for name in names:
        (tmp_path / name).write_text("case,seed\n# My notes\n")
        with pytest.raises(ReslabError, match=f"{name}.*that reslab did not write"):
            write_report([places], tmp_path / "x.html")
        assert [path.name for path in tmp_path.glob("x*")] == [name]
        (tmp_path / name).unlink()
    page = write_report([places], tmp_path / "other.html")
    assert write_report([places], page) == page


def test_the_csv_has_one_row_a_run(places, page):
    rows = rows_of(places / "report.csv")
    assert len(rows) == 12
    assert rows[0]["eval_bpb"] == str(
        json.loads((places / "000000000000" / "result.json").read_text())["eval_bpb"]
    )
    assert [row["state"] for row in rows[9:]] == ["finished", "diverged", "missing"]
    assert rows[11]["eval_bpb"] == ""


def test_the_csv_of_comparisons_agrees_with_the_page(places, page):
    rows = {
        (row["at_equal"], row["case"]): row
        for row in rows_of(places / "report-comparisons.csv")
    }
    post = rows["tokens", "post"]
    assert f"{float(post['difference']):+.4f}" in page.read_text()
    assert f"{float(post['difference']):+.4f}" in (places / "report.md").read_text()
    assert post["baseline"] == "pre"
    assert rows["tokens", "deep"]["p"] == ""


def test_the_csv_of_depth_has_every_value_of_the_last_probe(places, page):
    rows = rows_of(places / "report-depth.csv")
    run = places / "000000000000"
    last = json.loads((run / "probes.jsonl").read_text().splitlines()[-1])
    found = [r for r in rows if (r["case"], r["seed"]) == ("pre", "0")]
    norms = [float(r["value"]) for r in found if r["quantity"] == "stream/norm"]
    assert norms == last["stream/norm"] and {r["step"] for r in found} == {"100"}
    matrix = [r for r in found if r["quantity"] == "unknown/matrix"]
    assert len(matrix) == 16
    assert float(matrix[6]["value"]) == last["unknown/matrix"][1][2]
    assert (matrix[6]["place"], matrix[6]["other_place"]) == ("1", "2")
    assert len({(r["case"], r["seed"]) for r in rows}) == 10  # Those that finished.


def test_the_terminal_shows_both_tables(places):
    text = answer([places])
    assert "at equal tokens" in text
    assert "at equal time" in text
    assert max(map(len, text.splitlines())) < 200


def test_names_are_text_and_never_markup(tmp_path, study_writer):
    bad = "<script>alert(1)</script> & \"quotes\" 'and' | pipes"
    cases = {"plain": {}, bad: {"model__depth": 2}}
    folder = study_writer(tmp_path / "s", cases, seeds=2)
    study = json.loads((folder / "study.json").read_text())
    study["question"] = study["name"] = bad
    (folder / "study.json").write_text(json.dumps(study))
    page = write_report([folder])
    assert "<script" not in page.read_text()
    assert any("<script>" in text for text in parse(page).texts)
    assert "<script" not in (folder / "report.md").read_text()


def test_mixed_budgets_are_marked_on_the_page(tmp_path, study_writer):
    cases = {"short": {}, "long": {"steps": 200, "model__depth": 2}}
    folder = study_writer(tmp_path / "s", cases, seeds=2)
    with pytest.raises(ReslabError):
        write_report([folder])
    assert not (folder / "report.html").exists()
    page = write_report([folder], allow_mixed=True)
    assert '<p class="mark">Runs with different token budgets' in page.read_text()
    assert "**Note.** Runs with different" in page.with_suffix(".md").read_text()


def test_other_surroundings_are_pointed_out(tmp_path, run_writer):
    run_writer(tmp_path / "a", 0)
    other = {"versions": {"python": "3.12.1"}, "device_kind": "TPU v5 lite"}
    run_writer(tmp_path / "b", 1, environment=other)
    page = write_report([tmp_path / "a", tmp_path / "b"], tmp_path / "out.html")
    assert "The runs were not made alike" in page.read_text()
    assert "TPU v5 lite" in page.read_text()


def test_an_old_run_without_costs_or_probes(tmp_path, run_writer):
    run_writer(tmp_path / "a", 0, probes=False)
    path = tmp_path / "a" / "run.json"
    record = json.loads(path.read_text())
    for key in ("parameters", "training_flops_per_token", "corpus"):
        del record[key]
    path.write_text(json.dumps(record))
    text = write_report([tmp_path / "a"], tmp_path / "out.html").read_text()
    assert "No run was looked into." in text
    assert "training FLOPs, logarithmic" not in text


def test_a_place_that_cannot_be_written_is_named(tmp_path, places):
    (tmp_path / "file").write_text("")
    with pytest.raises(ReslabError, match="a file that can be written"):
        write_report([places], tmp_path / "file" / "report.html")
    with pytest.raises(ReslabError, match=r"--out: expected a file name\.html"):
        write_report([places], tmp_path / "report.txt")


HOSTILE = {
    '=HYPERLINK("http://x")': {"level": 2.0},
    "![](http://x) |\n# a": {"level": 2.1, "model__placement": "post"},
    "\x1b[31mred\x1b[0m\u202e": {"level": 2.2, "model__norm": "layer"},
    "-1": {"level": 2.3, "model__residual": "rezero"},
    "@SUM(A1)\t`<img src=x>`": {"level": 2.4, "model__depth": 5},
}


def test_names_are_neither_formulas_nor_markup_nor_commands(
    tmp_path, study_writer, capsys
):
    folder = study_writer(tmp_path / "study", HOSTILE, seeds=2)
    assert main(["report", str(folder)]) == 0
    said = capsys.readouterr().out
    texts = {p.suffix: p.read_bytes().decode() for p in folder.glob("report.*")}
    assert {".html", ".md", ".csv"} <= texts.keys()
    for text in (said, *texts.values()):
        assert not set(text) & {"\x1b", "\u202e", "\r"}
    assert "\\x1b[31mred" in said
    for name in ("report.csv", "report-comparisons.csv"):
        found = rows_of(folder / name)
        for row in found:
            for key, cell in row.items():
                is_formula = cell.startswith(("=", "+", "-", "@", "\t"))
                assert not is_formula or float(cell) < 0, (key, cell)
        assert '\'=HYPERLINK("http://x")' in {row["case"] for row in found}
        assert "-1" in {row["case"] for row in found}
    markdown = texts[".md"]
    for markup in (r"!\[", r"[^\\]\]\((?!#)", "<img", "\n# a", "http://", " `"):
        assert not re.search(markup, markdown), markup
    lines = [line for line in markdown.splitlines() if line.startswith("| ")]
    bars = {len(re.findall(r"(?<!\\)\|", line)) for line in lines if "img" in line}
    assert bars and bars <= {
        len(re.findall(r"(?<!\\)\|", line)) for line in lines if "-1 |" in line
    }


def test_code_in_markdown_ends_at_its_own_fence():
    text = to_markdown(Document("t", [Section("s", [Text("a\n```\n# b", "code")])]))
    assert "````\na\n```\n# b\n````" in text


def test_of_many_findings_the_ends_are_told(tmp_path, study_writer):
    cases = {
        f"case {i}": {"level": 2 + i / 10, "noise": 0.001, "model__depth": i + 1}
        for i in range(10)
    }
    page = write_report([study_writer(tmp_path / "s", cases)])
    told = re.findall(r"<p>At equal tokens, (.*?)</p>", page.read_text())
    named = [re.match(r"case \d+|\d+ more", text)[0] for text in told]
    assert named == [
        *(f"case {i}" for i in (1, 2, 3)),
        "3 more",
        *(f"case {i}" for i in (7, 8, 9)),
    ]
    assert told[3] == "3 more differences are shown, in the table."
