"""Writers: what is on disk after writes, kills and resumes."""

import hashlib
import json
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.observe.metrics import Writers
from reslab.observe.trackers import Trackers
from reslab.observe.writers import jsonl


def records(directory):
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_the_family_is_complete():
    assert registry.names("writers") == ("jsonl", "tensorboard", "wandb")


def test_lines_are_on_disk_at_once(tmp_path):
    writer = jsonl.build(directory=str(tmp_path))
    writer.write(1, {"loss": 2.5, "tokens": 640})
    assert records(tmp_path) == [{"step": 1, "loss": 2.5, "tokens": 640}]
    writer.write(2, {"loss": jnp.float32(1.5), "norm": np.float32(0.5)})
    assert records(tmp_path)[1] == {"step": 2, "loss": 1.5, "norm": 0.5}
    writer.close()


def test_values_that_are_not_finite_are_null(tmp_path):
    writer = jsonl.build(directory=str(tmp_path))
    writer.write(1, {"loss": float("nan"), "norm": float("inf"), "good": 1.0})
    writer.close()
    assert records(tmp_path) == [{"step": 1, "loss": None, "norm": None, "good": 1.0}]


def test_a_resumed_file_reads_as_the_unbroken_one(tmp_path):
    """Killed in the middle of line 5 after a checkpoint at step 2."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    for directory, last in ((whole, 6), (broken, 4)):
        writer = jsonl.build(directory=str(directory))
        for step in range(1, last + 1):
            writer.write(step, {"loss": 1 / step})
        writer.close()
    with (broken / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    writer = jsonl.build(directory=str(broken))
    assert [r["step"] for r in records(broken)] == [1, 2, 3, 4]
    writer.truncate(2)
    assert [r["step"] for r in records(broken)] == [1, 2]
    for step in range(3, 7):
        writer.write(step, {"loss": 1 / step})
    writer.close()
    file = "metrics.jsonl"
    assert (broken / file).read_bytes() == (whole / file).read_bytes()
    assert [p.name for p in broken.iterdir()] == [file]


def test_read_leaves_out_a_half_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "a": 2}\n{"step": 2, "a"')
    assert jsonl.read(tmp_path / "metrics.jsonl") == [{"step": 1, "a": 2}]


def test_writers_fan_out_and_always_keep_json_lines(tmp_path):
    pytest.importorskip("tensorboardX")
    writers = Writers(["tensorboard"], str(tmp_path))
    writers.write(1, {"loss": 1.0})
    writers.write(2, {"loss": 0.5})
    writers.truncate(1)
    writers.write(2, {"loss": 0.25})
    writers.close()
    assert [r["loss"] for r in records(tmp_path)] == [1.0, 0.25]
    events = sorted((tmp_path / "tensorboard").iterdir())
    assert len(events) == 2 and all(p.stat().st_size for p in events)


def test_json_lines_are_not_doubled(tmp_path):
    writers = Writers(["jsonl"], str(tmp_path))
    writers.write(1, {})
    writers.close()
    assert records(tmp_path) == [{"step": 1}]


@pytest.mark.parametrize(
    ("name", "package"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")]
)
def test_a_missing_package_is_one_line_and_leaves_nothing(
    tmp_path, monkeypatch, name, package
):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ReslabError, match=rf"{package}.*reslab\[track\]"):
        Writers([name], str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_wrong_option(tmp_path):
    with pytest.raises(ReslabError, match="no argument 'mod'"):
        Writers(["wandb(mod='online')"], str(tmp_path))
    assert not list(tmp_path.iterdir())


class Tracker(types.SimpleNamespace):
    """A package `wandb` that keeps what it is told, and fails where it is told to."""

    def __init__(self):
        super().__init__(runs=[], fails="")

    def init(self, **options):
        if self.fails == "init":
            raise RuntimeError("api_key not configured (no-tty)\n\n wandb login")
        self.runs.append(
            types.SimpleNamespace(options=options, points=[], is_open=True)
        )
        return types.SimpleNamespace(log=self.log, finish=self.finish)

    def log(self, metrics, step):
        if self.fails == "log":
            raise ConnectionError("no route to host")
        self.runs[-1].points.append((step, metrics))

    def finish(self):
        if self.fails == "finish":
            raise SystemExit(1)
        self.runs[-1].is_open = False


@pytest.fixture
def wandb(monkeypatch):
    tracker = Tracker()
    monkeypatch.setitem(sys.modules, "wandb", tracker)
    return tracker


def write_record(directory, name, depth):
    directory.mkdir(exist_ok=True)
    (directory / "run.json").write_text(json.dumps({"id": name}))
    (directory / "config.json").write_text(json.dumps({"model.depth": depth}))


def test_wandb_is_offline_and_resumes_the_same_run(tmp_path, wandb):
    write_record(tmp_path / "run", "abc", 3)
    for _ in range(2):
        writers = Writers(["wandb(project='depth')"], str(tmp_path / "run"))
        writers.truncate(2)
        writers.write(3, {"loss": jnp.float32(1.0)})
        writers.close()
    first, second = wandb.runs
    assert first.options == second.options
    assert first.options["mode"] == "offline" and first.options["resume"] == "allow"
    assert first.options["project"] == "depth" and first.options["id"] == "abc"
    assert first.options["config"] == {"model.depth": 3}
    assert first.points == [(3, {"loss": 1.0})] and not first.is_open


def test_another_run_in_the_same_directory_is_another_one(tmp_path, wandb):
    for name in ("abc", "def"):
        write_record(tmp_path / "run", name, 3)
        Writers(["wandb"], str(tmp_path / "run")).close()
    assert [run.options["id"] for run in wandb.runs] == ["abc", "def"]
    # An older version named it by its path.
    named = hashlib.sha256(str(tmp_path / "run").encode()).hexdigest()[:16]
    (tmp_path / "run" / "wandb" / f"offline-run-1-{named}").mkdir(parents=True)
    Writers(["wandb"], str(tmp_path / "run")).close()
    assert wandb.runs[-1].options["id"] == named


def test_two_of_a_kind_are_two(tmp_path, wandb):
    specs = ["wandb(project='a')", "wandb(project='b')", "wandb(project='a')"]
    Writers(specs, str(tmp_path)).close()
    assert [run.options["project"] for run in wandb.runs] == ["a", "b"]


def test_points_past_which_a_run_goes_back_are_not_kept(tmp_path, wandb):
    write_record(tmp_path, "abc", 3)
    writers = Writers(["wandb"], str(tmp_path))
    for step in range(1, 5):
        writers.write(step, {"loss": float(step)})
    writers.truncate(2)
    writers.write(3, {"loss": 0.5})
    writers.close()
    before, after = wandb.runs
    assert not before.is_open and after.options["id"] == "abc-1"
    assert after.options["group"] == before.options["group"] == "abc"
    losses = [(step, metrics["loss"]) for step, metrics in after.points]
    assert losses == [(1, 1.0), (2, 2.0), (3, 0.5)]
    writers = Writers(["wandb"], str(tmp_path))
    assert wandb.runs[-1].options["id"] == "abc-1"
    writers.close()


@pytest.mark.parametrize("fails", ["log", "finish"])
def test_a_tracker_that_fails_is_left_out(fails, tmp_path, wandb, capsys):
    writers = Writers(["wandb"], str(tmp_path))
    wandb.fails = fails
    for step in (1, 2):
        writers.write(step, {"loss": 1.0})
    writers.truncate(1)
    writers.write(2, {"loss": 0.5})
    writers.close()
    assert [r["loss"] for r in records(tmp_path)] == [1.0, 0.5]
    (line,) = capsys.readouterr().err.splitlines()
    assert "wandb failed" in line and "continues without it" in line


def test_a_tracker_that_cannot_begin_is_one_line(tmp_path, wandb, capsys):
    wandb.fails = "init"
    with pytest.raises(ReslabError, match="api_key not configured") as caught:
        Writers(["wandb"], str(tmp_path))
    assert len(str(caught.value).splitlines()) == 1 and not list(tmp_path.iterdir())
    trackers = Trackers(["wandb"], str(tmp_path), is_begun=True)
    trackers.write(1, {"loss": 1.0})
    (line,) = capsys.readouterr().err.splitlines()
    assert "wandb failed" in line
