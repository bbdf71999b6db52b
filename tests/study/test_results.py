"""Reading studies and runs, and holding them against each other."""

import dataclasses
import json

import numpy as np
import pytest

from reslab.cli import main
from reslab.core.errors import ReslabError
from reslab.core.records import sealed
from reslab.study.comparison import (
    at_equal_flops,
    at_equal_time,
    at_equal_units,
    censored_median,
    reaching_the_baseline,
)
from reslab.study.report import answer
from reslab.study.results import read_results


def edit(path, **changes):
    """Changes fields of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | changes
    kept = {key: value for key, value in content.items() if value is not None}
    path.write_text(json.dumps(kept))


def test_a_study_is_read_whole(places):
    results = read_results([places])
    assert results.question == "Does the place of the norm matter at depth 4?"
    assert list(results.cases) == ["pre", "post", "hyper with four streams", "deep"]
    assert len(results.runs) == 12
    states = [run.state for run in results.of("deep")]
    assert states == ["finished", "diverged", "missing"]
    assert "not finite" in results.of("deep")[1].message


def test_plain_runs_become_cases(tmp_path, run_writer):
    for name, seed, depth in (("a", 0, 4), ("b", 1, 4), ("c", 0, 8)):
        placement = "post" if depth == 8 else "pre"
        run_writer(
            tmp_path / name, seed, model__depth=depth, model__placement=placement
        )
    results = read_results([tmp_path / name for name in "abc"])
    assert list(results.cases) == ["depth=4 placement=pre", "depth=8 placement=post"]
    assert [run.seed for run in results.of(results.cases[0])] == [0, 1]
    assert results.baselines == {
        "depth=4 placement=pre": None,
        "depth=8 placement=post": "depth=4 placement=pre",
    }
    chosen = read_results(
        [tmp_path / name for name in "abc"], baseline="depth=8 placement=post"
    )
    assert chosen.baselines["depth=4 placement=pre"] == "depth=8 placement=post"


def test_runs_that_differ_in_nothing_but_the_seed(tmp_path, run_writer):
    run_writer(tmp_path / "a", 0)
    run_writer(tmp_path / "b", 1)
    assert list(read_results([tmp_path / "a", tmp_path / "b"]).cases) == ["run"]


def test_the_curve_is_of_one_quantity(tmp_path, run_writer):
    run_writer(tmp_path / "a", 0, noise=0.0)
    (run,) = read_results([tmp_path / "a"]).runs
    assert [step for step, _ in run.curve] == [20, 40, 60, 80, 100]
    # The last row's figure of the sample, not that of all held-out text.
    assert run.curve[-1][1] == run.rows[-1]["eval_sample_bpb"]
    assert run.figure == run.rows[-1]["eval_bpb"] != run.curve[-1][1]


def test_time_is_that_of_the_steps_alone(tmp_path, run_writer):
    run_writer(tmp_path / "a", 0, step_seconds=0.1)
    path = tmp_path / "a" / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[2]["step_seconds"] = 0.3
    del rows[4]["step_seconds"]  # Right after a resume: the next row's stands for it.
    rows[5]["step_seconds"] = 0.2
    rows[6]["elapsed_seconds"] += 1000  # Compiling, evaluating: not counted.
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run,) = read_results([tmp_path / "a"]).runs
    np.testing.assert_allclose(run.seconds_at(20), 2.0)
    np.testing.assert_allclose(run.seconds_at(25), 2.0 + 1.5)
    np.testing.assert_allclose(run.seconds_at(60), 2.0 + 3.0 + 1.0 + 2.0 + 2.0)
    np.testing.assert_allclose(run.seconds, 10.0 + 2.0 + 1.0 + 1.0)


def test_a_run_without_speeds_has_no_time(tmp_path, run_writer):
    run_writer(tmp_path / "a", 0)
    path = tmp_path / "a" / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    text = "".join(
        json.dumps({k: v for k, v in row.items() if k != "step_seconds"}) + "\n"
        for row in rows
    )
    path.write_text(text)
    results = read_results([tmp_path / "a"])
    assert results.runs[0].seconds is None
    assert at_equal_time(results)[0].summary.count == 0


def test_the_curve_is_read_off_between_evaluations_and_not_beyond(tmp_path, run_writer):
    run_writer(tmp_path / "a", 0, step_seconds=0.1)
    (run,) = read_results([tmp_path / "a"]).runs
    middle = (run.curve[0][1] + run.curve[1][1]) / 2
    np.testing.assert_allclose(run.figure_at_time(3.0), middle)
    assert run.figure_at_time(1.9) is None
    assert run.figure_at_time(10.1) is None


def test_equal_time_cuts_the_slower_at_the_time_of_the_faster(tmp_path, study_writer):
    cases = {
        "fast": {"step_seconds": 0.1},
        "slow": {"step_seconds": 0.2, "model__placement": "post"},
    }
    results = read_results([study_writer(tmp_path / "s", cases)])
    fast, slow = at_equal_time(results)
    np.testing.assert_allclose((fast.at, slow.at), (10.0, 10.0))
    halves = [
        float(np.interp(50, *zip(*run.curve, strict=True)))
        for run in results.finished("slow")
    ]
    np.testing.assert_allclose(slow.summary.mean, np.mean(halves))
    ends = [run.curve[-1][1] for run in results.finished("fast")]
    np.testing.assert_allclose(slow.against.mean, np.mean(ends))
    assert slow.verdict == "worse"
    # Equal tokens are no trouble to the slow one: it is as good in the end.
    final = at_equal_units(results)[1].comparison
    assert abs(final.difference) < 0.1 * slow.comparison.difference


def test_times_of_packs_of_different_sizes_are_not_compared(tmp_path, study_writer):
    study = study_writer(tmp_path / "s", {"one": {}, "two": {"model__norm": "layer"}})
    for run in read_results([study]).runs:
        path = run.directory / "run.json"
        seeds = [0, 1, 2] if run.case == "one" else [0, 1]
        path.write_text(
            json.dumps({**json.loads(path.read_text()), "packed_seeds": seeds})
        )
    results = read_results([study])
    assert "trained 2 and 3 seeds at once" in results.marks[-1]
    assert {row.summary.count for row in at_equal_time(results)} == {0}
    assert {row.summary.count for row in at_equal_units(results)} == {3}


def test_the_step_where_the_baseline_ends_is_read_off(tmp_path, study_writer):
    cases = {
        "base": {"step_seconds": 0.1},
        "sooner": {"level": 1.9, "step_seconds": 0.2, "model__placement": "post"},
        "never": {"level": 2.5, "model__depth": 3},
    }
    results = read_results([study_writer(tmp_path / "s", cases)])
    base, sooner, never = reaching_the_baseline(results)
    ends = [run.curve[-1][1] for run in results.finished("base")]
    np.testing.assert_allclose(sooner.figure, np.mean(ends))
    for run, step in zip(results.finished("sooner"), sooner.steps, strict=True):
        assert step is not None
        np.testing.assert_allclose(
            np.interp(step, *zip(*run.curve, strict=True)), np.mean(ends)
        )
        assert 35 < step < 65  # 1.9 + 3 exp(-step / 12) = 2, but for noise.
    np.testing.assert_allclose(sooner.seconds, 0.2 * np.array(sooner.steps))
    assert (base.baseline_steps, base.baseline_seconds) == (100, 10.0)
    assert 0 < sum(step is None for step in base.steps) < 3  # Those above their mean.
    assert list(never.steps) == [None] * 3 and censored_median(never.steps) is None


def test_equal_tokens_compares_the_final_figures(places):
    results = read_results([places])
    rows = at_equal_units(results)
    final = [run.result["eval_bpb"] for run in results.finished("post")]
    np.testing.assert_allclose(rows[1].summary.mean, np.mean(final))
    assert rows[0].verdict == "baseline"
    assert rows[3].summary.count == 1
    assert rows[3].comparison is None
    assert rows[3].verdict == "diverged in 1 of 3"


def test_equal_flops_reads_the_dearer_case_earlier(tmp_path, study_writer):
    cases = {"cheap": {}, "dear": {"model__placement": "post", "flops": 11_000_000}}
    results = read_results([study_writer(tmp_path / "s", cases)])
    cheap, dear = at_equal_flops(results)
    assert cheap.at == dear.at == 51_200 * 5_500_000
    halves = [run.figure_at_units(25_600) for run in results.finished("dear")]
    np.testing.assert_allclose(dear.summary.mean, np.mean(halves))
    assert dear.verdict == "worse"


def test_equal_flops_of_own_schedules_are_final_figures(tmp_path, study_writer):
    cases = {
        "cheap": {"steps": 200},
        "dear": {"model__placement": "post", "flops": 11_000_000},
    }
    results = read_results([study_writer(tmp_path / "s", cases)])
    assert "at equal training FLOPs" in results.marks[0]
    final = [run.figure for run in results.finished("dear")]
    np.testing.assert_allclose(at_equal_flops(results)[1].summary.mean, np.mean(final))


def test_equal_flops_are_left_out_where_they_are_equal_data(places):
    cases = {"pre", "post"}
    results = read_results([places])
    runs = [run for run in results.runs if run.case in cases]
    assert not at_equal_flops(dataclasses.replace(results, runs=runs))


def test_a_case_that_diverges_is_neither_better_nor_as_good(tmp_path, study_writer):
    cases = {
        "base": {},
        "better but for one": {
            "level": 1.5,
            "model__placement": "post",
            "states": {2: "diverged"},
        },
        "worse": {"level": 2.5, "model__depth": 3},
    }
    folder = study_writer(tmp_path / "s", cases, seeds=4)
    rows = at_equal_units(read_results([folder]))
    assert [row.verdict for row in rows] == ["baseline", "diverged in 1 of 4", "worse"]
    # A baseline that diverges makes nothing worse than it.
    cases["base"]["states"] = {3: "diverged"}
    folder = study_writer(tmp_path / "t", cases, seeds=4)
    assert at_equal_units(read_results([folder]))[2].verdict == "cannot tell"


def test_a_baseline_without_error_is_compared_in_full(tmp_path, study_writer):
    cases = {"solved": {}, "not": {"model__placement": "post", "level": 3.0}}
    folder = study_writer(tmp_path / "s", cases, noise=0.1)
    for result in folder.glob("*/result.json"):
        found = json.loads(result.read_text())
        config = (result.parent / "config.json").read_text().replace(" ", "")
        is_solved = 'placement":"post"' not in config
        found["eval_bpb"] = 0.0 if is_solved else found["eval_bpb"]
        result.write_text(json.dumps(found))
    (row,) = at_equal_units(read_results([folder]))[1:]
    assert row.against.mean == 0.0
    assert main(["report", str(folder)]) == 0
    if row.verdict == "worse":
        assert "whole figure" in (folder / "report.md").read_text()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"margin": -1.0}, "margin or factor: expected more than 0"),
        ({"search": "x"}, "search"),
        ({"search": {"field": ["a"]}}, "field"),
        ({"is_sequential": "no"}, "true or false"),
        ({"baselines": {"a": "a", "b": "a"}}, "its own baseline"),
    ],
)
def test_records_of_studies_are_read_with_care(tmp_path, study_writer, changes, words):
    cases = {"a": {}, "b": {"model__placement": "post"}}
    folder = study_writer(tmp_path / "s", cases)
    path = folder / "study.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ReslabError, match=words):
        read_results([folder])


def test_as_good_as_needs_a_margin_that_the_data_keep(tmp_path, study_writer):
    cases = {"base": {}, "same": {"model__placement": "post"}}
    folder = study_writer(tmp_path / "s", cases, seeds=8, noise=0.001)
    assert at_equal_units(read_results([folder]))[1].verdict == "no difference shown"
    rows = at_equal_units(read_results([folder], margin=0.05))
    assert rows[1].verdict == "as good as"
    rows = at_equal_units(read_results([folder], margin=1e-4))
    assert rows[1].verdict == "no difference shown"


def test_mixed_budgets_are_refused_unless_asked_for_and_then_marked(
    tmp_path, study_writer
):
    cases = {"short": {}, "long": {"steps": 200, "model__depth": 2}}
    folder = study_writer(tmp_path / "s", cases)
    with pytest.raises(
        ReslabError, match=r"different token budgets.*0000 51200, .*0003 102400"
    ):
        read_results([folder])
    results = read_results([folder], allow_mixed=True)
    assert "different token budgets" in results.marks[0]
    rows = at_equal_units(results)
    assert rows[1].at == 51_200
    halves = [run.figure_at_units(51_200) for run in results.finished("long")]
    assert None not in halves
    np.testing.assert_allclose(rows[1].summary.mean, np.mean(halves))


def test_mixed_corpora_are_refused_unless_asked_for_and_then_marked(
    tmp_path, study_writer
):
    cases = {"one": {}, "other": {"corpus": "d" * 64, "model__depth": 2}}
    folder = study_writer(tmp_path / "s", cases)
    with pytest.raises(ReslabError, match=r"different corpora.*cccccccccccc.*dddddddd"):
        read_results([folder])
    results = read_results([folder], allow_mixed=True)
    assert "different corpora" in results.marks[0]


def test_what_cannot_be_read_is_named(tmp_path, places, run_writer):
    with pytest.raises(ReslabError, match=r"no case 'pst'.*'post'"):
        read_results([places], baseline="pst")
    with pytest.raises(ReslabError, match="nothing there"):
        read_results([tmp_path / "absent"])
    with pytest.raises(ReslabError, match=r"no study\.json and no config\.json"):
        read_results([tmp_path])
    with pytest.raises(ReslabError, match="one study alone"):
        read_results([places, places])
    run_writer(tmp_path / "a", 0)
    with pytest.raises(ReslabError, match="are the same run"):
        read_results([tmp_path / "a", tmp_path / "a"])
    run_writer(tmp_path / "b", 0)
    with pytest.raises(ReslabError, match="are the same run"):
        read_results([tmp_path / "a", tmp_path / "b"])


def test_a_run_of_another_version_is_named(tmp_path, run_writer):
    run_writer(tmp_path / "a", 0)
    edit(tmp_path / "a" / "config.json", **{"model.depth": None})
    with pytest.raises(ReslabError, match=r"a/config\.json.*another version"):
        read_results([tmp_path / "a"])


def test_a_run_that_is_not_the_planned_one_is_named(places):
    study = json.loads((places / "study.json").read_text())
    study["runs"][0]["sha256"] = "f" * 64
    (places / "study.json").write_text(json.dumps(study))
    with pytest.raises(ReslabError, match="000000000000 is not the run"):
        read_results([places])


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"cases": {}, "baselines": {}}'], ids=repr
)
def test_a_damaged_study_is_named(places, content):
    (places / "study.json").write_text(content)
    with pytest.raises(ReslabError, match=r"study\.json"):
        read_results([places])


def test_a_study_whose_baseline_does_not_exist_is_named(places):
    edit(places / "study.json", baselines={"post": "pree"})
    with pytest.raises(ReslabError, match=r"'post' has no baseline 'pree'.*'pre'"):
        read_results([places])


def test_a_study_that_has_not_begun_has_no_report(tmp_path, study_writer):
    missing = {0: "missing", 1: "missing", 2: "missing"}
    folder = study_writer(tmp_path / "s", {"a": {"states": missing}})
    with pytest.raises(ReslabError, match="none has any yet"):
        read_results([folder])


@pytest.fixture
def sealed_study(places):
    """The study of four cases as a sweep writes it now."""
    path = places / "study.json"
    path.write_text(json.dumps(sealed(json.loads(path.read_text()))))
    return places


def swap(runs, key):
    """Exchanges a field of the first run with that of the first that differs."""
    other = next(run for run in runs if run[key] != runs[0][key])
    runs[0][key], other[key] = other[key], runs[0][key]


EDITS = {
    "a label": lambda study: swap(study["runs"], "case"),
    "a seed": lambda study: swap(study["runs"], "seed"),
    "a directory": lambda study: swap(study["runs"], "directory"),
    "a name": lambda study: study["runs"][0].update(case="post"),
    "a baseline": lambda study: study["baselines"].update(post=None),
    "the question": lambda study: study.update(question="Is post better?"),
    "the cores": lambda study: study.update(cores=64),
    "a run less": lambda study: study["runs"].pop(),
    "the seal": lambda study: study.update(seal=3),
}


@pytest.mark.parametrize("kind", EDITS)
def test_an_edited_study_is_refused(kind, sealed_study, tmp_path, capsys):
    read_results([sealed_study])
    path = sealed_study / "study.json"
    study = json.loads(path.read_text())
    EDITS[kind](study)
    path.write_text(json.dumps(study))
    for command in (["report"], ["inspect", "--probe", "stream"]):
        assert main([*command, str(sealed_study)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "study.json was changed since it was written" in line
    assert not (sealed_study / "report.html").exists()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("a label", "are not of one case"),
        ("a seed", "is not of the seed that the study says"),
        ("a directory", "is not the run that the study planned"),
    ],
)
def test_labels_and_seeds_are_held_to_the_configs(kind, message, places):
    path = places / "study.json"
    study = json.loads(path.read_text())
    EDITS[kind](study)
    path.write_text(json.dumps(study))
    with pytest.raises(ReslabError, match=message):
        read_results([places])


def test_other_data_of_the_same_name_are_marked(tmp_path, study_writer):
    folder = study_writer(tmp_path / "s", {"one": {}, "other": {"model__depth": 2}})

    def record(run, **digests):
        path = folder / f"{run:012x}" / "run.json"
        edit(path, corpus=json.loads(path.read_text())["corpus"] | digests)

    for run in range(6):
        record(run, tokens_sha256="1" * 64, tokenizer_sha256="2" * 64)
    assert not read_results([folder]).marks
    record(3, tokens_sha256="3" * 64)
    (mark,) = read_results([folder]).marks
    assert mark.startswith("Runs with different tokens of the same documents stand in")
    assert "one seed 0 111111111111, other seed 0 333333333333" in mark
    assert f"note: {mark}\n" in answer([folder])
    record(3, tokenizer_sha256="4" * 64)  # So the tokens have to be others.
    (mark,) = read_results([folder]).marks
    assert mark.startswith("Runs with different tokenizer files stand in one table")
