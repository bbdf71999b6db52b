"""Streams, literals, records and options: what a person or a disk may hold."""

import argparse
import os
import subprocess
import sys
import time

import jax
import pytest

from reslab.commands.options import number, place, whole
from reslab.core.errors import ReslabError
from reslab.core.literals import literal
from reslab.core.records import read_record
from reslab.observe.progress import progress
from reslab.runtime.exits import INTERNAL, explain
from reslab.runtime.streams import readers_may_leave

PROGRAM = """
import os, sys
from reslab.runtime.streams import outlive_readers, write_failure
outlive_readers()
for _ in range(3):
    print("told \\u0441 " * 5000, flush=True)
    print("told \\udce9 " * 5000, file=sys.stderr, flush=True)
assert os.open(os.devnull, os.O_RDONLY) > 2
os._exit(7 if write_failure() else 5)
"""


@pytest.mark.parametrize("inputs", ["", "<&-"])
@pytest.mark.parametrize("error", ["", "2>&1", "2>&-", "2>/dev/full"])
@pytest.mark.parametrize("output", ["", ">&-", ">/dev/full", "| head -c 9", "| true"])
def test_work_outlives_its_readers(output, error, inputs):
    redirection = f"{inputs} {error} {output}"
    code = 7 if output == ">/dev/full" else 5
    done = subprocess.run(
        [
            *("bash", "-c"),
            f'"{sys.executable}" -c "$PROGRAM" {redirection}; exit ${{PIPESTATUS[0]}}',
        ],
        env={**os.environ, "PROGRAM": PROGRAM, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == code, done.stderr[-500:]


STALLED = """
import os, sys
from reslab.runtime import streams
streams.PATIENCE = 0.2
streams.outlive_readers()
for number in range(3000):
    print(f"{number:99}", file=sys.stderr)
    print(f"{number:99}")
sys.stdout.flush()
os._exit(5)
"""


@pytest.mark.parametrize("is_blocking", [True, False])
def test_a_reader_that_does_not_read_holds_nothing_up(is_blocking):
    reads, writes = os.pipe()
    os.set_blocking(writes, is_blocking)
    stuck = os.pipe()
    os.set_blocking(stuck[1], is_blocking)
    process = subprocess.Popen(
        [sys.executable, "-c", STALLED], stdout=writes, stderr=stuck[1]
    )
    os.close(writes)
    time.sleep(0.5)  # Longer than what a full pipe may hold up.
    with open(reads, "rb") as stream:
        lines = stream.read().splitlines()
    assert process.wait(timeout=20) == 5
    assert list(map(int, lines)) == list(range(3000))
    assert 2**12 <= len(os.read(stuck[0], 2**20)) < 3000 * 100
    for end in stuck:
        os.close(end)


class Gone:
    def __init__(self, error, is_terminal):
        self.error, self.is_terminal = error, is_terminal

    encoding = "utf-8"

    def write(self, text):
        raise self.error

    flush = lambda self: self.write("")  # noqa: E731
    isatty = lambda self: self.is_terminal  # noqa: E731


@pytest.mark.parametrize("is_terminal", [False, True])
@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(5, "EIO"), ValueError()])
def test_a_display_that_is_gone_ends_nothing(error, is_terminal):
    with progress(2, stream=Gone(error, is_terminal)) as bar:
        bar.update(1, {"loss": 1.0})
        bar.update(2, {"loss": 1.0})


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(5, "EIO"), ValueError()])
def test_a_script_outlives_its_readers_while_it_trains(error, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Gone(error, True))
    with readers_may_leave(), progress(2) as bar:
        print("told", file=sys.stderr, flush=True)
        bar.update(1, {"loss": 1.0})
        assert sys.stderr.isatty()
    monkeypatch.setattr(sys, "stderr", None)
    with readers_may_leave(), progress(2) as bar:
        print("told", file=sys.stderr, flush=True)
        bar.update(1, {"loss": 1.0})
    assert sys.stderr is None


@pytest.mark.parametrize(
    "text",
    [
        *("{{}: 1}", "{[]: 1}", "{1: 2}", "1j", "b'x'", "{1, 2}", "...", "f(1)"),
        *("9" * 30, "9" * 6000, "1e999", "-1e999", "[" * 5000, "-" * 5000 + "1"),
        *("[" * 40 + "]" * 40, "'" + "x" * 30_000 + "'", "'\0"),
    ],
)
def test_what_is_no_plain_literal(text):
    with pytest.raises(ValueError):
        literal(text)


@pytest.mark.parametrize(
    "content, words",
    [
        (b'{"a": "\xff"}', "UTF-8"),
        (b"{", "not JSON"),
        (b"[]", "an object"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 6000 + b"}", "not JSON"),
        (b'{"part": 3}', "part: expected an object"),
        (b'{"count": 1' + b"0" * 400 + b"}", "count: expected a whole number"),
        (b'{"count": true}', "count: expected a whole number .* got bool"),
        (b'{"size": -Infinity}', "size: expected a number of at most .* got -inf"),
        (b'{"size": NaN}', "size: expected a number"),
        (b'{"size": -1e308}', "size: expected a number"),
        (b'{"names": "ab"}', "names: expected a list"),
        (b'{"names": ["a", 1]}', r"names\[1\]: expected a text; got int"),
        (b'{"bases": {"a": null, "b": 1}}', "bases: b: expected a text"),
    ],
)
def test_damaged_records(content, words, tmp_path):
    path = tmp_path / "record.json"
    path.write_bytes(content)
    form = {"part": {}, "count": int, "size": float, "names": [str]}
    with pytest.raises(ReslabError, match=words):
        read_record(path, form | {"bases": {...: (None, str)}})


def test_a_record_that_begins_with_a_mark(tmp_path):
    (tmp_path / "record.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_record(tmp_path / "record.json") == {"a": 1}


def test_places(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert place("~/x") == str(tmp_path / "x")
    assert place("a b") == "a b"
    for text in ("", "a\0b", "r\udce9n", "x" * 300, "\x1b[31m", "~nobody-here/x"):
        with pytest.raises(argparse.ArgumentTypeError):
            place(text)


@pytest.mark.parametrize("kind", [whole(0, 9), number(0, 9)])
@pytest.mark.parametrize("text", ["-1", "10", "nan", "inf", "9" * 6000, "x", ""])
def test_numbers_out_of_range(kind, text):
    with pytest.raises((argparse.ArgumentTypeError, ValueError)):
        kind(text)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9"),
    ],
)
def test_out_of_memory_says_what_to_try(error):
    code, line = explain(error)
    assert code == INTERNAL
    assert line.startswith("out of memory") and "data.batch" in line
    assert len(line.splitlines()) == 1


@pytest.mark.parametrize(
    "number, code", [(2, 2), (36, 2), (28, 70), (5, 70), (116, 70)]
)
def test_errors_of_files_are_one_line(number, code):
    found, line = explain(OSError(number, os.strerror(number), "a\nb"))
    assert found == code and len(line.splitlines()) == 1
    assert explain(RuntimeError("of reslab itself")) is None
