"""Storage that fails under a run: nothing is lost, and the exit code is right."""

import errno
import os

import pytest

from reslab.core.errors import ReslabError
from reslab.observe.writers.jsonl import JsonLines
from reslab.runtime.storage import StorageFailed
from reslab.train import loop
from reslab.train.ending import end
from reslab.train.run import Run

ABOUT = {"corpus": {"sha256": "0" * 64}}


@pytest.mark.conformance
def test_a_run_that_is_moved_while_it_trains_ends(tmp_path, small_config, capsys):
    run, gone = tmp_path / "run", tmp_path / "gone"

    def move(step):
        if step == 9:
            run.rename(gone)

    with pytest.raises(StorageFailed, match="run/checkpoints was renamed") as caught:
        loop.train(small_config(train__log_every=1), run, after_step=move)
    assert end(caught.value) == 70
    assert not run.exists()
    assert sorted(p.name for p in gone.glob("checkpoints/*[0-9]")) == ["4", "8"]
    result = loop.train(small_config(train__log_every=1), gone)
    assert result["step"] == 12


@pytest.mark.parametrize("name", ["EIO", "ESTALE", "ENOSPC", "EACCES"])
@pytest.mark.parametrize("call", ["mkdir", "fsync", "replace", "open"])
def test_the_first_write_of_a_run_fails(
    name, call, tmp_path, monkeypatch, small_config
):
    real = getattr(os, call)

    def fail(path, *arguments, **options):
        is_first = "run" in str(path) or call == "fsync"
        if is_first and (call != "open" or arguments[0] & os.O_CREAT):
            number = getattr(errno, name)
            raise OSError(number, os.strerror(number), path)
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, call, fail)
    kind = ReslabError if name == "EACCES" else StorageFailed
    with pytest.raises(kind, match=r"run directory .*run") as caught:
        Run(tmp_path / "run").open(small_config(), ABOUT)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize("kind", ["directory", "dangling"])
def test_files_that_cannot_be_written_are_refused(kind, tmp_path):
    for name in ("lock", "metrics.jsonl", "probes.jsonl"):
        if kind == "directory":
            (tmp_path / name).mkdir()
        else:
            (tmp_path / name).symlink_to(tmp_path / "nowhere")
    with pytest.raises(ReslabError, match="lock"), Run(tmp_path).lock():
        pass
    for name in ("metrics.jsonl", "probes.jsonl"):
        with pytest.raises(ReslabError, match=name):
            JsonLines(tmp_path / name)
    assert not (tmp_path / "nowhere").exists()


def test_a_full_disk_under_the_metrics_is_one_line(tmp_path):
    lines = JsonLines(tmp_path / "metrics.jsonl")
    lines.write(1, {"loss": 1.0})
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, lines._file.fileno())
    for work in (lambda: lines.write(2, {"loss": 1.0}), lines.close):
        with pytest.raises(StorageFailed, match=r"metrics.jsonl: .*No space left"):
            work()
    os.close(full)
