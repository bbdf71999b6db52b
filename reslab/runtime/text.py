"""Text for a terminal: tables, and nothing that a terminal would obey."""

import contextlib
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from reslab.core.errors import escaped, one_line, printable

# Spreadsheets treat text that begins with these as a formula, which may read files and
# send them.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


class PrintableStream:
    """A stream on which control characters are written escaped.

    Names, paths and what a model says may hold any; only tabs and ends of lines are
    passed on. Every other property of the stream is unchanged.

    Args:
      stream: Where to write, also known as `beneath`, for what moves the cursor.
    """

    def __init__(self, stream: TextIO):
        self.beneath = stream

    def write(self, text: str) -> int:
        """Writes a text, escaped."""
        self.beneath.write(printable(text))
        return len(text)

    def flush(self) -> None:
        """Passes on what has been written."""
        self.beneath.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.beneath, name)


@contextlib.contextmanager
def warnings_in_one_line() -> Iterator[None]:
    """Shows a warning of Python's as one printable line, the first of each place alone.

    Python adds the line of source that warned, and a damaged compile cache warns of
    every program that it holds.
    """
    places = set()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        del category, file, line
        if (filename, lineno) not in places:
            places.add((filename, lineno))
            print(f"warning: {one_line(str(message))}", file=sys.stderr)

    before = warnings.showwarning
    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before


def spreadsheet_cell(value: Any) -> Any:
    """A value for CSV that no spreadsheet takes for a formula; numbers stay numbers.

    >>> spreadsheet_cell("=1+1"), spreadsheet_cell(-1.5), spreadsheet_cell("-1.5")
    ("'=1+1", -1.5, '-1.5')
    """
    if not isinstance(value, str):
        return value
    is_formula = value.startswith(_FORMULA) and not _is_number(value)
    return ("'" if is_formula else "") + escaped(value)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines with the cells of each column under each other.

    >>> aligned([("a", "loss"), ("long", "1")])
    ['a     loss', 'long  1']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{cell:{w}}" for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
