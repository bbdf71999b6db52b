"""Files and directories that are there whole or not at all."""

import contextlib
import errno
import os
import signal
import stat
import threading
import time

import pytest

from reslab.core.errors import ReslabError
from reslab.runtime.files import (
    Place,
    make_directory,
    scratch_directory,
    whole_directory,
    write_whole,
)
from reslab.runtime.storage import StorageFailed


def test_a_directory_is_there_when_it_is_whole(tmp_path):
    with whole_directory(tmp_path / "above" / "made") as partial:
        (partial / "file").write_text("x")
        assert not (tmp_path / "above" / "made").exists()
    assert (tmp_path / "above" / "made" / "file").read_text() == "x"
    assert [path.name for path in (tmp_path / "above").iterdir()] == ["made"]
    (tmp_path / "usual").mkdir()
    modes = {stat.S_IMODE(os.stat(tmp_path / at).st_mode) for at in ("usual", "above")}
    assert stat.S_IMODE(os.stat(tmp_path / "above" / "made").st_mode) in modes


def test_nothing_is_left_when_a_process_is_asked_to_end(tmp_path):
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with (
            pytest.raises(KeyboardInterrupt),
            whole_directory(tmp_path / "made") as partial,
        ):
            (partial / "file").write_text("x")
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_of_half_a_directory(tmp_path, error):
    with pytest.raises(error), whole_directory(tmp_path / "made") as partial:
        (partial / "file").write_text("x")
        raise error
    assert not list(tmp_path.iterdir())


def test_threads_of_a_failed_write_leave_nothing(tmp_path):
    """As those of a checkpoint do, they make again what was removed beneath them."""

    def write(path):
        for number in range(40):
            with contextlib.suppress(OSError):
                (path / f"{number}").mkdir(parents=True)
                (path / f"{number}" / "file").write_text("x")
            time.sleep(0.01)

    with pytest.raises(StorageFailed), whole_directory(tmp_path / "made") as partial:
        for _ in range(3):
            threading.Thread(target=write, args=(partial / "deep",)).start()
        time.sleep(0.1)
        raise OSError(errno.ENOSPC, "No space left on device", str(partial))
    assert not list(tmp_path.iterdir())
    time.sleep(0.5)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_line(tmp_path):
    with (
        pytest.raises(StorageFailed, match=r"made: .*written.*No space left") as caught,
        whole_directory(tmp_path / "made"),
    ):
        raise OSError(28, "No space left on device")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_what_is_there_is_kept(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    for name in ("file", "full", "file/below"):
        with pytest.raises(ReslabError), whole_directory(tmp_path / name):
            pytest.fail("the block must not run")
    (tmp_path / "empty").mkdir()
    with whole_directory(tmp_path / "empty") as partial:
        write_whole(partial / "new", "y")
    assert (tmp_path / "empty" / "new").read_text() == "y"
    assert (tmp_path / "full" / "file").read_text() == "x"


def test_remains_of_killed_processes_are_removed_and_others_kept(tmp_path):
    (tmp_path / ".made.partial-x").mkdir()
    (tmp_path / ".made.partial-x" / "tokens").write_text("x")
    (tmp_path / ".other.partial-x").mkdir()
    (tmp_path / ".file.partial-x").write_text("half")
    with whole_directory(tmp_path / "made") as one:
        assert not (tmp_path / ".made.partial-x").exists()
        with whole_directory(tmp_path / "made") as two:
            assert one.is_dir() and one != two
    write_whole(tmp_path / "file", "whole")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"made", "file", ".other.partial-x"}


def test_a_scratch_directory_goes_with_its_block(tmp_path):
    (tmp_path / "work-old").mkdir()
    with scratch_directory("work-", tmp_path) as made:
        (made / "file").write_text("x")
        assert [path.name for path in tmp_path.iterdir()] == [made.name]
    assert not list(tmp_path.iterdir())


def test_a_name_counts_when_its_file_and_directory_are_synced(tmp_path, monkeypatch):
    done = []

    def fsync(handle):
        is_directory = stat.S_ISDIR(os.fstat(handle).st_mode)
        done.append("directory" if is_directory else os.pread(handle, 9, 0).decode())

    replace = os.replace
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", lambda *a: (done.append("name"), replace(*a)))
    write_whole(tmp_path / "file", "text")
    assert done == ["text", "name", "directory"]
    done.clear()
    with whole_directory(tmp_path / "made") as partial:
        (partial / "in").write_text("inside")
    assert done == ["inside", "directory", "name", "directory"]
    done.clear()
    make_directory(tmp_path / "a" / "b")
    assert done == ["directory", "directory"]


def test_a_place_is_one_directory_and_not_a_name(tmp_path):
    (tmp_path / "run").mkdir()
    place = Place(tmp_path / "run")
    place.check()
    (tmp_path / "run").rename(tmp_path / "moved")
    for _ in range(2):
        with pytest.raises(StorageFailed, match="run was renamed"):
            place.check()
        (tmp_path / "run").mkdir(exist_ok=True)
    (place.held / "file").write_text("x")
    assert (tmp_path / "moved" / "file").read_text() == "x"
    place.close()


def test_a_file_that_cannot_be_read_is_not_taken_for_the_directory(tmp_path):
    with pytest.raises(FileNotFoundError), whole_directory(tmp_path / "made"):
        (tmp_path / "source").read_text()
    assert not list(tmp_path.iterdir())
