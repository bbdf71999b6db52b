"""Errors of storage: a mistake is told from a failure that is worth a retry."""

import errno
import os
import pathlib

import pytest

from reslab.cli import main
from reslab.core.errors import ReslabError
from reslab.runtime import files
from reslab.runtime.storage import StorageFailed, local_path, storage_error

MISTAKES = ("EACCES", "EPERM", "EROFS", "ENOENT", "ENOTDIR", "EISDIR", "ELOOP")
FAILURES = ("EIO", "ESTALE", "ENOSPC", "EDQUOT", "ETIMEDOUT", "ENOTCONN", "EMFILE")


@pytest.mark.parametrize("name", (*MISTAKES, *FAILURES))
def test_each_error_is_a_mistake_or_a_failure(name):
    number = getattr(errno, name)
    cause = OSError(number, os.strerror(number))
    error = storage_error("x", cause, expected="a directory", hint="--out")
    kind = ReslabError if name in MISTAKES else StorageFailed
    assert type(error) is kind and os.strerror(number) in str(error)
    assert ("try: --out" in str(error)) == (name in MISTAKES)


def test_a_path_is_local():
    assert local_path("runs/a:b", "--run") == pathlib.Path("runs/a:b")
    assert local_path("~/x", "--run") == pathlib.Path.home() / "x"
    for url in ("gs://bucket/x", "s3://x", "file:///x", pathlib.Path("gs://bucket/x")):
        with pytest.raises(ReslabError, match=r"--run .* a URL; try: mount the buck"):
            local_path(url, "--run")


URL = "gs://bucket/x"
TRAIN = ("train", "--config", "tiny", "--set", "data.source=synthetic(documents=60)")


@pytest.mark.parametrize(
    "arguments",
    [
        (*TRAIN, "--run", URL),
        ("sweep", "STUDY", "--out", URL),
        ("report", URL),
        ("transform", "pre_rms_to_pre_crms", "somewhere", "--out", URL),
        ("compile", URL),
        ("show", URL),
        (*TRAIN, "--continue-from", URL),
        ("train", "--from-run", URL),
        ("report", "somewhere", "--out", f"{URL}.html"),
        ("eval", URL),
        ("generate", URL),
        ("inspect", URL),
        ("transform", "pre_rms_to_pre_crms", URL, "--out", "out"),
        ("data", "tokenize", "synthetic(documents=60)", "--out", URL),
        ("bench", "ops", "--out", f"{URL}.csv"),
        ("train", "--config", "tiny", "--set", f"data.source=tokens(path='{URL}')"),
    ],
)
def test_urls_are_refused_before_anything_is_made(
    arguments, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    try:
        code = main([*arguments])
    except SystemExit as stopped:  # Of argparse.
        code = stopped.code
    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "URL" in line and "mount the bucket" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["EIO", "ENOSPC", "EACCES"])
@pytest.mark.parametrize("call", ["mkdir", "fsync", "replace"])
def test_a_first_write_that_fails_has_the_right_exit_code(
    name, call, tmp_path, monkeypatch, capsys
):
    number = getattr(errno, name)
    times = iter(range(99))
    real = getattr(os, call)

    def fail(*arguments, **options):
        if next(times) == 0:
            raise OSError(number, os.strerror(number))
        return real(*arguments, **options)

    monkeypatch.setattr(files.os, call, fail)
    arguments = ["data", "tokenize", "synthetic(documents=60)", "--out"]
    code = main([*arguments, str(tmp_path / "a" / "b")])
    assert code == (2 if name == "EACCES" else 70)
    (line,) = capsys.readouterr().err.splitlines()
    assert os.strerror(number) in line
    assert not [p for p in tmp_path.rglob("*") if p.name != "a"]
