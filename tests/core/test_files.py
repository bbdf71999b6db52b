"""Files and directories that are there whole or not at all."""

import os
import stat

import pytest

from reslab.core.errors import ReslabError
from reslab.core.files import whole_directory, write_whole
from reslab.core.storage import StorageFailed


def test_a_directory_is_there_when_it_is_whole(tmp_path):
    with whole_directory(tmp_path / "above" / "made") as partial:
        (partial / "file").write_text("x")
        assert not (tmp_path / "above" / "made").exists()
    assert (tmp_path / "above" / "made" / "file").read_text() == "x"
    assert [path.name for path in (tmp_path / "above").iterdir()] == ["made"]
    (tmp_path / "usual").mkdir()
    modes = {stat.S_IMODE(os.stat(tmp_path / at).st_mode) for at in ("usual", "above")}
    assert stat.S_IMODE(os.stat(tmp_path / "above" / "made").st_mode) in modes


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_of_half_a_directory(tmp_path, error):
    with pytest.raises(error), whole_directory(tmp_path / "made") as partial:
        (partial / "file").write_text("x")
        raise error
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
