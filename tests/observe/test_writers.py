"""Writers: what is on disk after writes, kills and resumes."""

import json
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.observe.metrics import Writers
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


def test_wandb_is_offline_and_resumes_the_same_run(tmp_path, monkeypatch):
    calls = []

    class Run:
        def log(self, metrics, step):
            calls.append((step, metrics))

        def finish(self):
            calls.append("finish")

    def init(**options):
        calls.append(options)
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    for _ in range(2):
        writers = Writers(["wandb(project='depth')"], str(tmp_path))
        writers.write(3, {"loss": jnp.float32(1.0)})
        writers.truncate(2)
        writers.close()
    first, *rest = calls[:3]
    assert (first["mode"], first["project"], first["resume"]) == (
        "offline",
        "depth",
        "allow",
    )
    assert rest == [(3, {"loss": 1.0}), "finish"]
    assert calls[3] == first
