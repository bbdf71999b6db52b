"""Text for a terminal: tables, and nothing that a terminal would obey."""

from collections.abc import Sequence
from typing import Any, TextIO

from reslab.core.errors import printable


class PrintableStream:
    """A stream on which control characters are written escaped.

    Names, paths and what a model says may hold any; only tabs and ends of lines are
    passed on. All else about the stream is as it was.

    Args:
      stream: Where to write.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes a text, escaped."""
        self._stream.write(printable(text))
        return len(text)

    def flush(self) -> None:
        """Passes on what has been written."""
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


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
