"""What a run may go on with: other writers and devices, more steps, the same parts."""

import json
import random
import shutil
import sys

import numpy as np
import pytest

from reslab.cli import main
from reslab.core import config as configs
from reslab.core import own
from reslab.core.errors import ReslabError
from reslab.train import loop, parts
from reslab.train.changes import adopt, refused
from reslab.train.run import Run, default_directory

CONSTANT = {"optim__schedule": "constant(warmup=2)"}
PART = """import flax.linen as nn
from lab_changes.scale import SCALE
class Norm(nn.Module):
    def __call__(self, x):
        return x * SCALE
build = Norm
"""


def rows(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return {row["step"]: row["loss"] for row in map(json.loads, lines)}


@pytest.mark.conformance
def test_a_run_grows_to_what_a_longer_one_is(tmp_path, brief_config, capsys):
    short, long = brief_config(**CONSTANT), brief_config(**CONSTANT, train__steps=6)
    wanted = loop.train(long, tmp_path / "whole")
    loop.train(short, tmp_path / "run")
    capsys.readouterr()
    assert loop.train(short, tmp_path / "run")["step"] == 4
    assert "is already finished, at step 4" in capsys.readouterr().err
    found = loop.train(long, tmp_path / "run")
    assert "from step 4 on with train.steps=6" in capsys.readouterr().err
    assert found["eval_loss"] == wanted["eval_loss"]
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    record = Run(tmp_path / "run").record()
    (change,) = record["changes"]
    assert change["step"] == 4 and change["fields"] == {"train.steps": [4, 6]}
    assert change["config_sha256"] == configs.sha256(short)
    assert Run(tmp_path / "run").config().train.steps == 6
    # All of it is still the run's own: what it ended with, and its first checkpoints.
    assert main(["eval", str(tmp_path / "run")]) == 0
    assert loop.train(long, tmp_path / "run") == found
    with pytest.raises(ReslabError, match=r"train\.steps \(4, and it was begun for 6"):
        loop.train(short, tmp_path / "run")


@pytest.mark.conformance
@pytest.mark.parametrize("killed_after", ["result.json", "run.json"])
def test_a_kill_while_it_is_recorded_loses_nothing(
    killed_after, tmp_path, brief_config, monkeypatch
):
    steps = {"optim__schedule": "constant"}
    loop.train(brief_config(**steps), tmp_path / "run")
    stage = {"result.json": "write", "run.json": "write_config"}[killed_after]

    def kill(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, stage, kill)
        loop.train(brief_config(**steps, train__steps=5), tmp_path / "run")
    for length in (4, 5):
        config = brief_config(**steps, train__steps=length)
        assert loop.train(config, tmp_path / "run")["step"] == length


@pytest.mark.conformance
def test_what_is_written_and_where_may_change(tmp_path, trained, brief_config):
    shutil.copytree(trained / "0", tmp_path / "run")
    run = tmp_path / "run"
    (run / "result.json").unlink()
    shutil.rmtree(run / "checkpoints" / "4")
    changed = {"train__log_every": 2, "train__keep_checkpoints": 1, "mesh__fsdp": 2}
    found = loop.train(brief_config(**changed), run)
    assert found["step"] == 4
    fields = Run(run).record()["changes"][0]["fields"]
    assert fields == {
        "train.log_every": [1, 2],
        "train.keep_checkpoints": [3, 1],
        "mesh.fsdp": [1, 2],
    }
    wanted = json.loads((trained / "0" / "result.json").read_text())
    np.testing.assert_allclose(found["eval_loss"], wanted["eval_loss"], rtol=1e-5)


FREE = {
    "train__log_every": (2, 3),
    "train__keep_checkpoints": (1, 2),
    "train__keep_every": (1, 2),
    "train__checkpoint_every": (1, 3),
    "train__eval_every": (1, 2),
    "train__log_layers": (True,),
    "train__writers": (("jsonl",), ("tensorboard",)),
    "probes__every": (1, 2),
    "probes__names": (("stream",), ("gradient", "update")),
    "probes__batch": (1, 16),
    "data__workers": (1,),
    "mesh__fsdp": (2, 4),
    "mesh__tensor": (2,),
}


@pytest.mark.conformance
@pytest.mark.parametrize("seed", range(4))
def test_any_of_them_may_change_and_the_run_stays(
    seed, tmp_path, trained, brief_config
):
    chance = random.Random(seed)
    run = shutil.copytree(trained / "0", tmp_path / "run")
    names = chance.sample(sorted(FREE), 4)
    changed = {name: chance.choice(FREE[name]) for name in names}
    (run / "result.json").unlink()
    shutil.rmtree(run / "checkpoints" / "4")
    found = loop.train(brief_config(**changed), run)
    wanted = json.loads((trained / "0" / "result.json").read_text())
    np.testing.assert_allclose(found["eval_loss"], wanted["eval_loss"], rtol=1e-5)
    recorded = Run(run).record()["changes"][0]["fields"]
    assert sorted(recorded) == sorted(name.replace("__", ".") for name in names)
    assert loop.train(brief_config(**changed), run) == found


@pytest.mark.parametrize(
    "changes, step, words",
    [
        ({"optim__schedule": "cosine"}, 4, "schedule 'cosine' would have been another"),
        ({"optim__name": "tract"}, 4, "optimizer 'tract' depends on it"),
        ({"optim__schedule": "wsd(warmup=0, decay=0.5)"}, 4, "would have been another"),
        ({"optim__schedule": "wsd(warmup=0, decay=0.5)"}, 2, ""),
        ({"optim__groups": ((".", {"schedule": "linear"}),), **CONSTANT}, 4, "linear"),
    ],
)
def test_steps_grow_only_where_those_done_stay(changes, step, words, brief_config):
    found = refused(
        brief_config(**changes), brief_config(**changes, train__steps=8), step
    )
    assert (words in found[0]) if words else not found


def test_no_field_of_the_mathematics_may_change():
    free = {name for name, field in configs.schema().items() if field.may_change}
    assert {name.replace("__", ".") for name in FREE} <= free
    for kept in ("seed", "train.steps", "train.accumulate", "data.batch", "eval.batch"):
        assert kept not in free
    assert not any(name.startswith(("model.", "optim.", "precision.")) for name in free)


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A norm outside reslab, with a file that it imports."""
    (tmp_path / "lab_changes").mkdir()
    (tmp_path / "lab_changes" / "norm.py").write_text(PART)
    (tmp_path / "lab_changes" / "scale.py").write_text("SCALE = 1.0\n")
    (tmp_path / "lab_changes" / "unused.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.startswith("lab_changes")]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path / "lab_changes"


def test_an_edited_part_is_another_run(lab, tmp_path, brief_config):
    config = brief_config(model__norm="lab_changes.norm")
    names = ["lab_changes.norm", "lab_changes.scale"]
    assert list(own.files(configs.modules(config))) == names
    loop.train(config, tmp_path / "run")
    assert sorted(Run(tmp_path / "run").record()["parts"]) == names
    copy = tmp_path / "run" / "parts" / "lab_changes.scale.py"
    assert copy.read_text() == "SCALE = 1.0\n"
    before = default_directory("x", config)
    loop.train(config, tmp_path / "run")
    (lab / "unused.py").write_text("# edited")
    assert default_directory("x", config) == before
    (lab / "scale.py").write_text("SCALE = 2.0\n")
    assert default_directory("x", config) != before
    with pytest.raises(ReslabError, match=r"lab_changes.scale changed since"):
        loop.train(config, tmp_path / "run")
    (lab / "scale.py").unlink()
    with pytest.raises(ReslabError, match="no such file"):
        loop.train(config, tmp_path / "run")


def test_without_parts_of_ones_own_the_digest_is_the_configs(brief_config):
    assert configs.digest(brief_config()) == configs.sha256(brief_config())


@pytest.fixture(scope="module")
def grown(tmp_path_factory, brief_config):
    """A finished run of four steps that went on to five."""
    run = tmp_path_factory.mktemp("grown") / "run"
    loop.train(brief_config(**CONSTANT), run)
    loop.train(brief_config(**CONSTANT, train__steps=5), run)
    return run


@pytest.mark.parametrize(
    "tampered",
    [
        {"fields": {"train.steps": [3, 5]}},
        {"fields": {}},
        {"fields": {"optim.learning_rate": [0.003, 0.5]}},
        {"fields": {"train.steps": 5}},
        {"step": -5},
        {"fields": {"train.steps": ["four", 5]}},
        {"fields": {"train.steps": [4, "five"]}},
        {"added": ["optim.learning_rate"]},
        {"removed": {"optim.clip": 1.0}},
        {"config_sha256": "0" * 64},
        {"config_sha256": None, "fields": None, "step": None},
    ],
    ids=str,
)
def test_changes_that_do_not_lead_to_the_config_are_refused(tampered, grown, tmp_path):
    run = shutil.copytree(grown, tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    (change,) = record["changes"]
    for key, value in tampered.items():
        change[key] = value
        if value is None:
            del change[key]
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(ReslabError, match=r"run.json: changes"):
        Run(run).config()


def test_another_learning_rate_is_no_change(grown, tmp_path, brief_config):
    """Also with its digest in the record, and the one before as if it were earlier."""
    run = shutil.copytree(grown, tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    edited = brief_config(**CONSTANT, train__steps=5, optim__learning_rate=0.5)
    fields = {"optim.learning_rate": [0.003, 0.5]}
    change = {"config_sha256": record["config_sha256"], "step": 0, "fields": fields}
    record |= {"changes": [*record["changes"], change]}
    record |= {"config_sha256": configs.sha256(edited)}
    (run / "run.json").write_text(json.dumps(record))
    Run(run).write_config(edited)
    with pytest.raises(ReslabError, match=r"run.json: changes"):
        Run(run).config()


def test_a_refused_growth_changes_nothing(grown, trained, tmp_path, brief_config):
    run = shutil.copytree(grown, tmp_path / "run")
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(trained / "1" / "checkpoints", run / "checkpoints")
    before = {p.name: p.read_bytes() for p in run.iterdir() if p.suffix == ".json"}
    with pytest.raises(ReslabError, match="is another run's"):
        loop.train(brief_config(**CONSTANT, train__steps=6), run)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(ReslabError, match="checkpoints is gone"):
        loop.train(brief_config(**CONSTANT, train__steps=6), run)
    assert before == {
        p.name: p.read_bytes() for p in run.iterdir() if p.suffix == ".json"
    }


def test_a_part_is_copied_byte_for_byte(lab, tmp_path, brief_config):
    text = b"# -*- coding: latin-1 -*-\r\nSCALE = 1.0  # \xe9\r\n"
    (lab / "scale.py").write_bytes(text)
    parts.keep(brief_config(model__norm="lab_changes.norm"), tmp_path / "run")
    copy = tmp_path / "run" / "parts" / "lab_changes.scale.py"
    assert copy.read_bytes() == text


def test_neither_reslab_nor_what_is_installed_beside_is_a_part(tmp_path, monkeypatch):
    site = tmp_path / "site-packages"
    for folder in (site, tmp_path / "work"):
        for name in ("lab_here", "neighbour", "reslab"):
            (folder / name).mkdir(parents=True)
            (folder / name / "__init__.py").write_text("")
        text = "import neighbour, reslab, jax\nfrom lab_here import other\n"
        (folder / "lab_here" / "norm.py").write_text(text)
        (folder / "lab_here" / "other.py").write_text("")
    expected = {"site-packages": [], "work": ["neighbour"]}
    for folder, beside in expected.items():
        with monkeypatch.context() as patch:
            norm = tmp_path / folder / "lab_here" / "norm.py"
            patch.setattr(own, "_file", lambda name, norm=norm: norm)
            found = list(own.files(["lab_here.norm"]))
        assert found == sorted(["lab_here", "lab_here.norm", "lab_here.other", *beside])


def test_reading_a_run_says_that_a_part_was_edited(lab, tmp_path, brief_config, capsys):
    loop.train(brief_config(model__norm="lab_changes.norm"), tmp_path / "run")
    capsys.readouterr()
    command = ["eval", str(tmp_path / "run"), "--allow-import", "lab_changes"]
    assert main(command) == 0
    assert "other code" not in capsys.readouterr().err
    (lab / "scale.py").write_text("SCALE = 1.0  # edited\n")
    assert main(command) == 0
    assert "saved by other code (lab_changes.scale" in capsys.readouterr().err


@pytest.mark.parametrize("dropout, is_right", [(0.0, True), (0.5, False)])
def test_a_run_of_an_older_version_may_change(
    dropout, is_right, trained, tmp_path, brief_config
):
    """Its config had no dropout, which is then off."""
    run = shutil.copytree(trained / "0", tmp_path / "run")
    older = json.loads((run / "config.json").read_text())
    del older["model.dropout"]
    text = json.dumps(older, sort_keys=True, indent=1)
    (run / "config.json").write_text(text)
    record = json.loads((run / "run.json").read_text())
    record["config_sha256"] = configs.sha256_of_text(text)
    (run / "run.json").write_text(json.dumps(record))
    adopt(Run(run), brief_config(train__log_every=2, model__dropout=dropout))
    if is_right:
        assert Run(run).config().train.log_every == 2
    else:
        with pytest.raises(ReslabError, match=r"run.json: changes"):
            Run(run).config()
