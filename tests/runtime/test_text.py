"""What reaches a terminal or a file is printable, and one line where it must be."""

import io

import pytest

from reslab.core.errors import LONGEST_VALUE, ReslabError
from reslab.runtime.text import PrintableStream, spreadsheet_cell

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
