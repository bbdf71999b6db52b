"""A study file becomes runs; what is wrong with it is told in one line."""

import json
import pathlib
import shlex

import pytest

from reslab.cli import main
from reslab.core.errors import ReslabError
from reslab.study.plan import choose, finished_runs, plan

STUDY = """
from reslab.study.algebra import case, chain, product, vary
from reslab.study.plan import Study

def get_study(scale="small"):
    return Study(
        question="Which?",
        config="tiny",
        cases={cases},
        seeds={seeds},
        baseline={baseline},
        once={once},
        overrides={{"train.steps": {{"small": 60, "large": 700}}[scale]}},
    )
"""
GRID = "product(vary('model.placement', 'pre', 'post'), vary('model.depth', 4, 8))"


@pytest.fixture
def study(tmp_path):
    """Writes a study file."""

    def write(cases=GRID, seeds="(0, 1)", baseline="None", once="()", text=STUDY):
        path = tmp_path / "placement.py"
        fields = {"cases": cases, "seeds": seeds, "baseline": baseline, "once": once}
        path.write_text(text.format(**fields))
        return str(path)

    return write


def test_runs_are_cases_times_seeds(study):
    planned = plan(study())
    assert planned.name == "placement"
    assert [(run.case, run.seed) for run in planned.runs[:5]] == [
        ("placement=pre depth=4", 0),
        ("placement=pre depth=8", 0),
        ("placement=post depth=4", 0),
        ("placement=post depth=8", 0),
        ("placement=pre depth=4", 1),
    ]
    config = planned.runs[3].config
    assert (config.model.placement, config.model.depth) == ("post", 8)
    assert (config.seed, config.train.steps) == (0, 60)


def test_some_cases_have_the_first_seed_alone(study):
    planned = plan(study(once="['placement=post depth=8']"))
    seeds = [run.seed for run in planned.runs if run.case == "placement=post depth=8"]
    assert seeds == [0]
    assert [run.index for run in planned.runs] == list(range(7))


def test_a_directory_is_named_by_the_config_alone(study):
    before = plan(study())
    renamed = GRID.replace("vary('model.depth', 4, 8)", "vary('model.depth', four=4)")
    after = plan(study(renamed))
    assert after.runs[0].case != before.runs[0].case
    assert after.runs[0].directory == before.runs[0].directory
    assert len({run.directory for run in before.runs}) == len(before.runs)


def test_a_scale_and_overrides(study):
    planned = plan(study() + ":large", ["data.batch=32"])
    assert planned.name == "placement-large"
    assert planned.runs[0].config.train.steps == 700
    assert planned.runs[0].config.data.batch == 32


@pytest.mark.parametrize("folder", ["exp:2", "a:b:c", "x:small"])
def test_a_path_may_have_colons(study, folder, tmp_path):
    (tmp_path / folder).mkdir()
    path = tmp_path / folder / "placement.py"
    path.write_bytes(pathlib.Path(study()).read_bytes())
    assert plan(str(path)).runs[0].config.train.steps == 60
    assert plan(f"{path}:large").runs[0].config.train.steps == 700


def test_a_baseline_by_fields_is_matched_case_by_case(study):
    baselines = plan(study(baseline="{'model.placement': 'pre'}")).baselines
    assert baselines == {
        "placement=pre depth=4": None,
        "placement=pre depth=8": None,
        "placement=post depth=4": "placement=pre depth=4",
        "placement=post depth=8": "placement=pre depth=8",
    }


def test_a_field_with_its_default_need_not_be_written(study):
    cases = "chain(case('base'), vary('model.residual', hyper='hyper(streams=2)'))"
    rule = "{'model.residual': 'plain'}"
    assert plan(study(cases, baseline=rule)).baselines == {
        "base": None,
        "hyper": "base",
    }


def test_the_manifest_splits_over_machines(study, capsys):
    assert main(["sweep", study(), "--manifest"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["index"] for line in lines] == list(range(8))
    assert lines[3]["command"].endswith("placement.py --only 3")
    planned = plan(study())
    shards = [choose(planned, shard=f"{i}/4") for i in range(4)]
    assert sorted(run.index for shard in shards for run in shard) == list(range(8))
    # One machine more than cases idles as little as any.
    for count in (2, 3, 5, 7):
        sizes = [len(choose(planned, shard=f"{i}/{count}")) for i in range(count)]
        assert sum(sizes) == 8 and max(sizes) - min(sizes) <= 1
    # No machine has a case to itself: p-values would compare machines.
    assert all(len({run.case for run in shard}) == 2 for shard in shards)


def test_a_line_of_the_manifest_does_that_very_run(study, tmp_path):
    """With all that was asked for, however it must be quoted."""
    out = str(tmp_path / "a b")
    sets = ["train.steps=7", "model.norm=layer(use_bias=False)"]
    planned = plan(study(), sets, out)
    line = json.loads(planned.manifest()[5])
    reslab, verb, source, *options = shlex.split(line["command"])
    assert (reslab, verb) == ("reslab", "sweep")
    repeated = [options[i + 1] for i, word in enumerate(options) if word == "--set"]
    again = plan(source, repeated, options[options.index("--out") + 1])
    assert options[-2:] == ["--only", "5"]
    assert again.runs[5].sha256 == line["sha256"]
    assert again.directory == planned.directory
    assert "--only" not in planned.record()["command"]


SHIPPED = pathlib.Path(__file__).parents[2] / "experiments"


@pytest.mark.parametrize("file", sorted(SHIPPED.glob("*/study.py")), ids=str)
@pytest.mark.parametrize("scale", ["", ":tpu"])
def test_shipped_studies_can_be_planned(file, scale):
    planned = plan(f"{file}{scale}")
    assert planned.runs
    assert any(planned.baselines.values())


MISTAKES = {
    "no file": ({"cases": None}, "no study"),
    "duplicate name": (
        {"cases": "chain(case('a'), case('a', {'model.depth': 8}))"},
        "two cases are called 'a'",
    ),
    "duplicate config": (
        {"cases": "chain(case('a'), case('b', {'model.depth': 4}))"},
        "cases 'a' and 'b' are the same",
    ),
    "duplicate seed": ({"seeds": "(1, 1)"}, "seeds: expected each once"),
    "no seed": ({"seeds": "()"}, "at least one case and one seed"),
    "seed as field": ({"cases": "vary('seed', 1, 2)"}, "sets the seed"),
    "no baseline": ({"baseline": "'placement=per depth=4'"}, "try: 'placement=pre"),
    "no such case": ({"once": "['depth=4']"}, "no case 'depth=4' to run once"),
    "no matched baseline": (
        {"baseline": "{'model.residual': 'hyper'}"},
        "has no baseline: expected a case that is the same but for",
    ),
    "unknown field": ({"cases": "vary('model.dpth', 4)"}, "case 'dpth=4': unknown"),
    "wrong type": ({"cases": "vary('model.depth', 'x')"}, "expected int; got 'x'"),
    "no study": ({"text": "def get_study():\n    return 3\n"}, "expected a Study"),
    "no function": ({"text": "x = 1\n"}, "expected a function get_study()"),
    "not joined": ({"cases": "[vary('seed', 1)]"}, "got a tuple among them"),
    "one seed": ({"seeds": "3"}, "study: seeds: expected"),
    "crash": ({"text": "x = 1 / 0\n"}, "line 1: got ZeroDivisionError"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line(mistake, study, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parts, words = MISTAKES[mistake]
    is_missing = "cases" in parts and parts["cases"] is None
    path = "nowhere.py" if is_missing else study(**parts)
    assert main(["sweep", path]) == 2
    _, err = capsys.readouterr()
    assert len(err.splitlines()) == 1
    assert words in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "options, words",
    [
        ({"only": 8}, "expected 0 to 7; got 8"),
        ({"shard": "3/3"}, "I/N with 0 <= I < N"),
        ({"shard": "x"}, "I/N with 0 <= I < N"),
    ],
)
def test_no_such_part(options, words, study):
    with pytest.raises(ReslabError, match=words):
        choose(plan(study()), **options)


@pytest.mark.parametrize("name", ["../other", "/other", "..", "", "a/b", 3, None])
def test_runs_of_a_study_lie_in_its_directory(tmp_path, name):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "result.json").write_text("{}")
    study = tmp_path / "study"
    study.mkdir()
    (study / "study.json").write_text(json.dumps({"runs": [{"directory": name}]}))
    with pytest.raises(ReslabError, match="a name in the study's directory"):
        finished_runs(study)
