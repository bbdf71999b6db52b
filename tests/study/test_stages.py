"""Searches, budgets in FLOPs and seeds that are added: what a study runs next."""

import pathlib

import numpy as np
import pytest

from reslab.cli import main
from reslab.core.errors import ReslabError
from reslab.study.comparison import at_equal_units
from reslab.study.plan import plan
from reslab.study.results import read_results
from reslab.study.stages import staged
from reslab.study.sweep import write_record

STUDY = """
from reslab.study.algebra import vary
from reslab.study.plan import Search, Study

def get_study():
    return Study(
        question="Which?",
        config="tiny",
        cases=vary("model.placement", {cases}),
        seeds={seeds},
        baseline="placement=pre",
        {fields}
    )
"""
SEARCH = "search=Search(factors=(0.5, 1.0, 2.0), seeds=(70,)),"


@pytest.fixture
def make(tmp_path):
    """Writes a study file; returns its path and the directory of its runs."""

    def write(fields="", cases="'pre', 'post'", seeds="(0, 1, 2)"):
        path = tmp_path / "study.py"
        path.write_text(STUDY.format(fields=fields, cases=cases, seeds=seeds))
        return str(path), [], str(tmp_path / "out")

    return write


def test_the_best_baseline_has_seeds_by_the_root_of_its_rivals(make):
    asked = make(cases="'pre', 'post', 'sandwich', 'deep_norm', 'mix_ln'")
    seeds = [r.seed for r in plan(*asked).runs if r.case == "placement=pre"]
    assert seeds == [0, 1, 2, 3, 4, 5]  # round(sqrt(4)) times three.
    assert len(plan(*asked).runs) == 5 * 3 + 3
    asked = make("extra_baseline_seeds=0,", "'pre', 'post', 'sandwich', 'mix_ln'")
    assert len(plan(*asked).runs) == 4 * 3


def test_a_search_comes_before_the_seeds_that_judge(end, make):
    asked = make(SEARCH)
    planned = staged(*asked)
    assert [(r.case[10:], r.factor, r.seed) for r in planned.runs] == [
        (case, factor, 70) for factor in (0.5, 1.0, 2.0) for case in ("pre", "post")
    ]
    rate = planned.runs[2].config.optim.learning_rate
    assert planned.runs[0].config.optim.learning_rate == rate / 2
    end(planned, lambda run: run.factor, case="placement=pre")
    assert len(staged(*asked).runs) == 6  # The other case is not searched yet.
    # A rate at which a run diverges is not chosen, however good the others were.
    end(planned, lambda run: None if run.factor == 0.5 else 3.0 - run.factor)
    planned = staged(*asked)
    judged = [run for run in planned.runs if run.factor is None]
    assert [run.index for run in planned.runs] == list(range(12))
    chosen = {run.case[10:]: run.config.optim.learning_rate / rate for run in judged}
    assert chosen == {"pre": 0.5, "post": 2.0}
    assert {run.seed for run in judged} == {0, 1, 2}


def test_the_report_shows_what_was_searched_and_its_edge(end, make, capsys):
    asked = make(SEARCH)
    end(staged(*asked), lambda run: abs(np.log(run.factor * 2.0)) + 2.0)
    planned = staged(*asked)
    noise = np.random.default_rng(0)
    end(planned, lambda run: 2.0 + noise.normal(0, 0.01))
    write_record(planned, 2)
    results = read_results([planned.directory])
    # The runs of the search are no sample of the case.
    assert [row.summary.count for row in at_equal_units(results)] == [3, 3]
    assert main(["report", asked[2]]) == 0
    page = (planned.directory / "report.md").read_text()
    lines = [text for text in page.splitlines() if text.startswith("| placement=post")]
    assert any("(x0.5), at the edge" in text for text in lines)
    assert "optim.learning_rate" in page


def test_equal_flops_give_the_dearer_case_fewer_steps(make, monkeypatch):
    from reslab.study import stages

    asked = make("equal='flops',")
    monkeypatch.setattr(
        stages, "steps_at_equal_flops", lambda planned: {"placement=post": 120}
    )
    planned = staged(*asked)
    steps = {run.case: run.config.train.steps for run in planned.runs}
    assert steps["placement=post"] == 120 != steps["placement=pre"]
    assert planned.record()["steps"] == {"placement=post": 120}


@pytest.mark.conformance
def test_steps_at_equal_flops_are_counted(make):
    from reslab.study.budgets import steps_at_equal_flops

    asked = make("equal='flops',")
    path = pathlib.Path(asked[0])
    cases = "vary('model.depth', shallow=2, deep=4)"
    text = path.read_text().replace("vary(\"model.placement\", 'pre', 'post')", cases)
    path.write_text(text.replace("placement=pre", "shallow"))
    planned = plan(*asked)
    (steps,) = steps_at_equal_flops(planned).values()
    whole = planned.runs[0].config.train.steps
    assert whole / 2 < steps < whole  # The head is in both.


@pytest.mark.conformance
def test_seeds_are_added_until_a_case_is_told(end, make):
    asked = make("is_sequential=True,", "'pre', 'post', 'sandwich'", "range(8)")
    noise = np.random.default_rng(1)

    def figure(run):
        return 2.0 + 0.5 * (run.case == "placement=post") + noise.normal(0, 0.01)

    counts = []
    while True:
        planned = staged(*asked)
        if len(planned.runs) in counts:
            break
        counts.append(len(planned.runs))
        end(planned, figure)
    seeds = {}
    for run in planned.runs:
        seeds.setdefault(run.case[10:], []).append(run.seed)
    assert counts[0] == 6
    assert 3 <= len(seeds["post"]) <= 6 < len(seeds["pre"]) == len(seeds["sandwich"])
    assert seeds["pre"] == list(range(8))
    write_record(planned, 2)
    rows = at_equal_units(read_results([planned.directory]))
    verdicts = [row.verdict for row in rows]
    assert verdicts == ["baseline", "worse", "no difference shown"]
    assert rows[1].comparison.low > 0


@pytest.mark.parametrize(
    "fields, words",
    [
        ("search=Search(factors=(1.0,)),", "at least two different factors"),
        ("search=Search(factors=(1.0, 1.0)),", "at least two different factors"),
        ("search=Search(factors=(1.0, -1.0)),", "factors > 0"),
        ("search=Search(seeds=(1, 5)),", "seeds that do not judge; got 1 for both"),
        ("search=Search(seeds=()),", "seeds that do not judge; got none"),
        ("search=Search(seeds=(7, 7)),", "seeds, each once"),
        ("search=Search(seeds=5),", "search: expected Search"),
        ("search=Search,", "search: expected Search"),
        ("search={'factors': (1, 2)},", "search: expected Search"),
        ("search=Search(factors=2.0),", "search: expected Search"),
        ("search=Search(field='model.init_std'),", "other than 0; got 0.0"),
        ("is_sequential='no',", "True or False"),
        ("search=Search(field='model.depth'),", "a field that is a real number"),
        ("search=Search(field='optim.rate'),", "a field that is a real number"),
        ("equal='time',", "'steps' or 'flops'"),
        ("margin=0.0,", "more than 0"),
        ("margin=float('nan'),", "more than 0"),
        ("extra_baseline_seeds=-1,", "0 or more"),
        ("is_sequential=True, margin=0.1,", "no margin"),
        ("is_sequential=True, extra_baseline_seeds=2,", "no extra_baseline_seeds"),
    ],
)
def test_mistakes_are_one_line(make, fields, words, capsys):
    asked = make(fields)
    with pytest.raises(ReslabError, match=words):
        staged(*asked)
    assert main(["sweep", asked[0], "--manifest"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_sequential_study_needs_seeds_and_a_baseline(make):
    with pytest.raises(ReslabError, match="at least 3 seeds"):
        staged(*make("is_sequential=True,", seeds="(0, 1)"))
