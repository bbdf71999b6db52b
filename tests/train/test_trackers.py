"""What becomes of trackers ends no run; one that cannot begin starts none."""

import importlib.machinery
import json
import sys
import types

import pytest

from reslab.core.errors import ReslabError
from reslab.train import loop


@pytest.fixture
def wandb(monkeypatch):
    """A package `wandb` that can be told to fail."""
    tracker = types.ModuleType("wandb")
    tracker.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    tracker.steps, tracker.fails = [], ""

    def step(name, work=None):
        def called(*_, **keywords):
            if tracker.fails == name:
                raise ConnectionError(f"no {name}")
            return work(keywords) if work else None

        return called

    run = types.SimpleNamespace(
        log=step("log", lambda told: tracker.steps.append(told["step"])),
        finish=step("finish"),
    )
    tracker.init = step("init", lambda _: run)
    monkeypatch.setitem(sys.modules, "wandb", tracker)
    return tracker


def test_a_tracker_that_cannot_begin_leaves_nothing(tmp_path, brief_config, wandb):
    wandb.fails = "init"
    config = brief_config(train__writers=("wandb",))
    with pytest.raises(ReslabError, match="ConnectionError: no init"):
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.conformance
@pytest.mark.parametrize("fails", ["log", "finish"])
def test_a_run_ends_without_its_tracker(fails, tmp_path, brief_config, wandb, capsys):
    config = brief_config(train__writers=("wandb",))
    wandb.fails = fails
    result = loop.train(config, tmp_path / "run")
    assert "wandb failed (ConnectionError" in capsys.readouterr().err
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
    # Later, without its host.
    (tmp_path / "run" / "result.json").unlink()
    wandb.fails = "init"
    assert loop.train(config, tmp_path / "run")["eval_loss"] == result["eval_loss"]
    assert "the run continues without it" in capsys.readouterr().err
