"""The depth benchmark: its cases, known answers, and the leaderboard."""

import csv

import numpy as np
import pytest

from reslab.cli import main
from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.parallel.mesh import make_mesh
from reslab.study.algebra import Case
from reslab.study.benchmark import get_study, leaderboard, picture
from reslab.study.benchmark.cases import FIELDS, LEFT_OUT
from reslab.study.benchmark.tasks import TASKS, task
from reslab.study.plan import plan
from reslab.study.selection import ALL, Selection
from reslab.study.stages import staged
from reslab.train.state import make_setup

ASKED = Selection(("norm=layer", "placement=post", "known: one layer"))
ERRORS = {"baseline": 0.02, "norm=layer": 0.02, "placement=post": 0.3}


def error(run, errors=ERRORS):
    """The figure of a case, with noise that its seeds differ by."""
    known = {"known: one layer": 0.8, **errors}
    noise = np.random.default_rng([run.seed, *run.case.encode()])
    # The search prefers the rate of the task.
    worse = 0.0 if run.factor in (None, 1.0) else 0.01
    found = known[run.case] + worse + float(noise.normal(0, 1e-3))
    return {"error": found, "loss": 4 * found}


@pytest.fixture
def judged(tmp_path, end):
    """Ends the runs of some cases of `recall`; returns the directory of all tasks."""

    def make(asked=ASKED, figure=error):
        for _ in range(2):  # The search, and the seeds that judge.
            out = str(tmp_path / "recall")
            end(staged("benchmark:recall", (), out, asked), figure)
        return tmp_path

    return make


def test_every_variant_is_a_case_of_every_task():
    mixers = {
        name: registry.unbound("mixers", name) for name in registry.names("mixers")
    }
    both_ways = {n for n, m in mixers.items() if getattr(m, "is_bidirectional", False)}
    assert {"manhattan", "simplified_linear", "max_pool"} <= both_ways
    for one in TASKS.values():
        found = {case.name for case in get_study(one.name).cases}
        for family, field in FIELDS.items():
            for name in set(registry.names(family)) - {*LEFT_OUT[family]}:
                is_case = f"{family.removesuffix('s')}={name}" in found
                assert is_case == (family != "mixers" or name not in both_ways), field
    assert len(plan("benchmark:text").runs) == len(get_study("text").cases) * 3


def test_a_task_is_a_study_by_its_name():
    planned = plan("benchmark:hops", selection=Selection(("norm=layer",)))
    assert {run.case for run in planned.runs} == {"baseline", "norm=layer"}
    assert planned.directory.name == "benchmark-hops"
    assert planned.command() == "reslab sweep benchmark:hops --cases norm=layer"


@pytest.mark.parametrize("name", ["", "recal", "recall:2"])
def test_no_task_of_that_name(name):
    with pytest.raises(ReslabError, match="no task"):
        plan(f"benchmark:{name}")


def test_cases_that_are_added_are_judged_like_the_others(judged):
    mine = Case("mine", {"model.norm": "group"})
    asked = Selection((*ASKED.names, "norm=group"), ())
    with pytest.raises(ReslabError, match="are the same"):
        plan("benchmark:recall", selection=Selection(more=(mine,)))
    mine = Case("mine", {"model.norm": "group(groups=2)"})
    asked = Selection(ASKED.names, (mine,))
    out = judged(asked, lambda run: error(run, ERRORS | {"mine": 0.001}))
    found = leaderboard.read_column("recall", out / "recall", asked)
    assert found.rows["mine"].verdict == "better"


def test_the_leaderboard_judges_what_has_ended(judged, capsys):
    out = judged()
    assert main(["benchmark", "--table", "--out", str(out)]) == 0
    page = (out / "leaderboard.md").read_text()
    assert page in capsys.readouterr().out
    rows = {line.split("|")[1].strip(): line for line in page.splitlines()[2:]}
    assert list(rows) == ["`baseline`", "`norm=layer`", "`placement=post`"]
    assert rows["`placement=post`"].endswith("worse |")
    assert "better" not in page
    with (out / "leaderboard.csv").open(newline="") as file:
        found = {row["case"]: row for row in csv.DictReader(file)}
    assert found["norm=layer"]["n"] == "5" and found["baseline"]["n"] == "10"
    assert found["norm=layer"]["verdict"] == "no difference shown"
    assert found["norm=layer"]["rate_factor"] == "1.0"
    assert found["norm=layer"]["is_at_edge"] == "False"
    assert found["norm=layer"]["median_step_learned"] == "300.0"
    assert found["placement=post"]["median_step_learned"] == ""
    drawing = (out / "leaderboard.svg").read_text()
    assert drawing.count(">worse</text>") == 1 and "known" not in drawing


def test_a_task_without_its_known_answer_judges_nothing(judged, capsys):
    out = judged(figure=lambda run: error(run, ERRORS | {"known: one layer": 0.09}))
    assert main(["benchmark", "--table", "--out", str(out)]) == 0
    assert "judges nothing: known: one layer has 0.0" in capsys.readouterr().out
    assert "placement" not in (out / "leaderboard.md").read_text()


def test_a_known_answer_that_was_not_run_is_said(judged):
    out = judged(Selection(("norm=layer",)))
    found = leaderboard.read_column("recall", out / "recall", ALL)
    assert found.missing == "known: one layer has not been run" and not found.rows


def test_a_case_with_an_open_seed_has_an_empty_cell(judged):
    out = judged()
    asked = "benchmark:recall", (), str(out / "recall"), ASKED
    last = [run for run in staged(*asked).runs if run.case == "norm=layer"][-1]
    (out / "recall" / last.directory / "result.json").unlink()
    found = leaderboard.read_column("recall", out / "recall", ALL)
    assert "norm=layer" not in found.runs and "placement=post" in found.rows


def test_cells_are_empty_words_or_figures(judged):
    def figure(run):
        lost = run.case == "norm=layer" and run.factor is None and run.seed == 2
        return None if lost else error(run)

    found = leaderboard.read_column("recall", judged(figure=figure) / "recall", ALL)
    assert leaderboard.cell(None) == ""
    assert leaderboard.cell(found.rows["norm=layer"]) == "diverged in 1 of 5"
    assert ">diverged</text>" in picture.draw([found])
    assert leaderboard.standardized(found.rows["placement=post"]) < -8


def test_bits_for_each_parameter_are_those_of_the_table(tmp_path, end):
    asked = Selection(("known: an eighth of the facts",))
    for _ in range(2):
        end(
            staged("benchmark:memory", (), str(tmp_path / "memory"), asked),
            lambda run: (
                {"error": 0.05 if run.case.startswith("known") else 0.5}
                | {"loss": 2 * np.log(2) + 1e-3 * run.seed}
            ),
        )
    found = leaderboard.read_column("memory", tmp_path / "memory", ALL)
    header, row = leaderboard.of_cells([found])
    bits = dict(zip(header, row, strict=True))["bits_per_parameter"]
    assert bits == pytest.approx(2048 * (6 - 2) / 2000, rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tasks", "recal"], "no task 'recal' of the benchmark"),
        (["--cases", "norm=layr"], "no case 'norm=layr' of the benchmark"),
        (["--case", "mine"], "--case mine: expected NAME FIELD=VALUE"),
        (["--table"], "expected runs of the benchmark; got none"),
        (["--case", "mine", "model.nrm=rms"], "model.nrm"),
    ],
)
def test_mistakes(arguments, said, tmp_path, capsys):
    out = tmp_path / "out"
    asked = ["benchmark", "--out", str(out), *arguments]
    assert main(asked if "--tasks" in asked else [*asked, "--tasks", "recall"]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not out.exists()


def test_what_there_is(capsys):
    assert main(["benchmark", "--list"]) == 0
    text = capsys.readouterr().out
    assert all(f"{name}\n  {task(name).question}" in text for name in TASKS)
    assert "must come out: known: one layer: error above 0.4" in text


@pytest.mark.conformance
def test_a_benchmark_of_a_few_steps(tmp_path, capsys):
    asked = ["benchmark", "--tasks", "recall", "--cases", "baseline"]
    asked += ["--pack", "seeds", "--out", str(tmp_path / "runs")]
    short = [f"train.{name}=2" for name in ("steps", "eval_every", "checkpoint_every")]
    asked += [*short, "model.features=8", "eval.batch=8"]
    asked += ["--case", "mine", "model.norm=group(groups=2)"]
    assert main(asked) == 0
    text = capsys.readouterr().out
    assert "recall` judges nothing: baseline has" in text
    found = leaderboard.read_column(
        "recall",
        tmp_path / "runs" / "recall",
        Selection(more=(Case("mine", {"model.norm": "group(groups=2)"}),)),
        [*short, "model.features=8", "eval.batch=8"],
    )
    counts = {case: len(runs) for case, runs in found.runs.items()}
    assert counts == {"baseline": 10, "mine": 5, "known: one layer": 5}
    # Every run is done: the same command only reads.
    assert main(asked) == 0
    assert "29 of 29 runs" in capsys.readouterr().out


@pytest.mark.conformance
@pytest.mark.parametrize("name", ["recall", "text"])
def test_every_case_can_be_built(name):
    firsts = {run.case: run.config for run in reversed(plan(f"benchmark:{name}").runs)}
    for case, config in firsts.items():
        assert make_setup(config, make_mesh(config.mesh)).shapes, case
