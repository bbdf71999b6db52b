"""What a comparison changes beside its question."""

import json

import pytest

from reslab.study import beginnings
from reslab.study.report import write_report
from reslab.study.results import read_results


@pytest.fixture
def study(tmp_path, study_writer):
    """Two cases; the embedding of the second enters 50 times larger."""
    folder = study_writer(tmp_path / "small", {"small": {}, "normed": {}}, seeds=2)
    for run in json.loads((folder / "study.json").read_text())["runs"]:
        scale = 50.0 if run["case"] == "normed" else 1.0
        path = folder / run["directory"]
        lines = path.joinpath("metrics.jsonl").read_text()
        first = {"step": 1, "loss": 5.5, "gradient_norm": 2.0 + run["seed"]}
        (path / "metrics.jsonl").write_text(json.dumps(first) + "\n" + lines)
        probes = path.joinpath("probes.jsonl").read_text().splitlines()
        at_start = json.loads(probes[0])
        at_start["stream/norm"][:2] = [0.2 * scale, 10.0]
        probes[0] = json.dumps(at_start)
        (path / "probes.jsonl").write_text("\n".join(probes) + "\n")
    return folder


def test_each_number_stands_beside_the_baselines(study):
    found = beginnings.table(read_results([study]))
    assert found.header == [
        *("case", "parameters", "training FLOPs", "initial loss"),
        *("initial gradient norm", "initial stream norm, embedding"),
        "initial stream norm, second sublayer",
    ]
    baseline, other = found.rows
    assert baseline == ["small", "8.524e+05", "5.5e+06", "5.5", "2.5", "0.2", "10"]
    assert other[3:] == ["5.5 (x1)", "2.5 (x1)", "10 (x50)", "10 (x1)"]


def test_what_differs_by_a_factor_is_warned_of(study):
    (warning,) = beginnings.warnings(read_results([study]))
    assert warning.kind == "mark"
    assert warning.text == (
        "Cases differ from their baseline in more than their question: initial stream "
        "norm, embedding, normed x50."
    )
    page = write_report([study])
    text = page.with_suffix(".md").read_text()
    assert "**Note.** Cases differ" in text and "## Beginnings" in text


def test_runs_without_such_numbers_have_no_table(tmp_path, run_writer):
    run_writer(tmp_path / "run", 0, probes=False)
    record = tmp_path / "run" / "run.json"
    kept = json.loads(record.read_text())
    for name in ("parameters", "training_flops_per_token"):
        del kept[name]
    record.write_text(json.dumps(kept))
    results = read_results([tmp_path / "run"])
    assert beginnings.table(results) is None and beginnings.warnings(results) == []
