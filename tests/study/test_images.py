"""Studies of image classifiers: compared by accuracy, where higher is better."""

import json

import pytest

from reslab.core.errors import ReslabError
from reslab.study.comparison import at_equal_units, reaching_the_baseline
from reslab.study.report import answer, write_report
from reslab.study.results import read_results
from reslab.train.tasks.images import ImageClassification

# Held-out accuracy at steps 20 and 40; the seed adds a little.
CURVES = {"resnet": (0.5, 0.8), "wider": (0.8, 0.9), "shallow": (0.4, 0.6)}


@pytest.fixture
def study(tmp_path, study_writer):
    folder = study_writer(tmp_path / "digits", {case: {"steps": 40} for case in CURVES})
    for run in json.loads((folder / "study.json").read_text())["runs"]:
        _make_a_run_of_images(folder / run["directory"], run["case"], run["seed"])
    return folder


def _make_a_run_of_images(run, case, seed):
    record = json.loads((run / "run.json").read_text())
    del record["training_flops_per_token"]
    headline = ImageClassification.headline
    record |= {"unit": "images", "units_per_example": 1, "headline": vars(headline)}
    (run / "run.json").write_text(json.dumps(record | {"training_flops_per_image": 7}))
    rows = [
        {
            "step": step,
            "loss": 1.0,
            "accuracy": accuracy,
            "eval_sample_accuracy": accuracy + 0.01 * ((seed + len(case)) % 3),
            "images_per_second": 100.0,
            "step_seconds": 0.1,
        }
        for step, accuracy in zip((20, 40), CURVES[case], strict=True)
    ]
    rows[-1] |= {"eval_accuracy": rows[-1]["eval_sample_accuracy"]}
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "result.json").write_text(json.dumps(rows[-1]))


def test_higher_is_better(study):
    results = read_results([study])
    verdicts = {row.case: row.verdict for row in at_equal_units(results)}
    assert verdicts == {"resnet": "baseline", "wider": "better", "shallow": "worse"}
    steps = {row.case: list(row.steps) for row in reaching_the_baseline(results)}
    assert steps["shallow"] == [None] * 3
    assert steps["wider"] == pytest.approx([20, 22, 20], abs=0.01)


def test_the_report_speaks_of_accuracy(study):
    page = write_report([study])
    told = page.with_suffix(".md").read_text()
    for words in (
        "held-out accuracy unless named otherwise; higher is better",
        "wider is better than resnet",
        "highest mean",
        "training FLOPs/image",
        "160 for each run: 40 steps of 4",
    ):
        assert words in told
    figures = told[: told.index("## Configs")]
    assert "bits per byte" not in figures and "token" not in figures
    lines = page.with_suffix(".csv").read_text().splitlines()
    assert "eval_accuracy" in lines[0] and "images_per_second" in lines[0]
    assert answer([study]).startswith("held-out accuracy at equal images")
    ranked = told[told.index("At equal images (") :]
    assert ranked.index("wider (best)") < ranked.index("shallow")


def test_text_and_images_are_not_compared(study, run_writer, tmp_path):
    run_writer(tmp_path / "text", 0)
    with pytest.raises(ReslabError, match="runs of different tasks in one table"):
        read_results([study / "000000000000", tmp_path / "text"], allow_mixed=True)


@pytest.mark.parametrize(
    "damage",
    [
        {"headline": ["bpb"]},
        {"headline": {"metric": 3, "name": "x", "is_higher_better": True}},
        {"headline": {"metric": "accuracy"}},
        {"unit": 7},
        {"units_per_example": "many"},
    ],
    ids=str,
)
def test_a_record_that_is_none_of_a_task(study, damage):
    path = study / "000000000000" / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    with pytest.raises(ReslabError, match=r"run\.json.*headline, unit"):
        read_results([study])
