"""What reaches a terminal or a file is printable, and one line where it must be."""

import io
import subprocess
import sys
import warnings

import pytest

from reslab.core.errors import LONGEST_VALUE, ReslabError
from reslab.optim.schedules._warmup import shortened
from reslab.runtime.text import PrintableStream, spreadsheet_cell, warnings_in_one_line

COMMANDS = ["\x1b[31m", "\x07", "\x00", "\r", "\x9b31m", "\u202e", "\u2028", "\ud800"]


@pytest.mark.parametrize("character", COMMANDS)
def test_streams_pass_on_no_commands(character):
    beneath = io.StringIO()
    print(f"a{character}b\tc", file=PrintableStream(beneath))
    said = beneath.getvalue()
    assert said.isascii() and said.startswith("a\\") and said.endswith("b\tc\n")
    assert said.count("\n") == 1


@pytest.mark.parametrize("character", [*COMMANDS, "\n", "\t", "\u2029", "\x85"])
def test_errors_are_one_printable_line(character):
    for part in ("expected", "got", "hint"):
        said = str(ReslabError(f"a{character}b", **{part: f"c{character}d"}))
        assert said.isprintable() and len(said.splitlines()) == 1
    # An error about an error says the same.
    assert str(ReslabError(said)) == said


def test_values_are_cut_and_sentences_are_not():
    said = str(ReslabError(f"field {'x' * 9999}", got="y " * 9999, hint="one of " * 40))
    assert len(said) < 1000
    assert "x" * (LONGEST_VALUE // 2) in said and said.endswith("one of ")
    assert "ünï 日本" in str(ReslabError("ünï 日本"))


@pytest.mark.parametrize(
    "value, cell",
    [
        ("=1+1", "'=1+1"),
        ("+1", "+1"),
        ("-1.5e3", "-1.5e3"),
        ("-x", "'-x"),
        ("@A1", "'@A1"),
        ("\t=1", "'\\t=1"),
        ("\r=1", "'\\r=1"),
        ("a=1", "a=1"),
        (-1.5, -1.5),
        (None, None),
    ],
)
def test_cells_are_no_formulas(value, cell):
    assert spreadsheet_cell(value) == cell


def test_a_warning_of_a_short_run_is_one_line_in_python():
    with pytest.warns(UserWarning, match="2 steps have no room for warmup=50") as told:
        shortened(50, 2)
    (one,) = told
    text = warnings.formatwarning(one.message, one.category, one.filename, one.lineno)
    assert len(text.splitlines()) == 1


def test_warnings_are_one_line_each_place_once(capsys):
    with warnings.catch_warnings(), warnings_in_one_line():
        warnings.simplefilter("always")
        for number in range(3):
            warnings.warn(f"told\n{number} \x1b[31m", stacklevel=1)
        warnings.warn("another", stacklevel=1)
    said = capsys.readouterr().err
    assert said == "warning: told\\n0 \\x1b[31m\nwarning: another\n"


DAMAGED_CACHE = """
import pathlib, sys
import jax
from reslab.runtime.text import warnings_in_one_line
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
def compute():
    print([float(jax.jit(lambda x: f * x)(2.0)) for f in (3.0, 5.0)])
with warnings_in_one_line():
    compute()
    entries = [*pathlib.Path(sys.argv[1]).glob("*-cache")]
    assert len(entries) >= 2
    for entry in entries:
        entry.write_bytes(b"damaged")
    jax.clear_caches()
    compute()
"""


def test_a_damaged_compile_cache_is_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", DAMAGED_CACHE, tmp_path / "cache"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[6.0, 10.0]\n" * 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("warning: Error reading persistent compilation cache")
