"""Tables of numbers over time, as text with commas."""

import csv
import dataclasses
import math
import pathlib
from typing import Annotated

import numpy as np

from reslab.core.bounds import Bounds, bounded
from reslab.core.errors import ReslabError
from reslab.data.series import Series

Share = Annotated[float, Bounds(above=0, below=1)]


@dataclasses.dataclass(frozen=True)
@bounded
class Table:
    """A column for each variate, a line for each step, in order.

    The first line has the names of the columns. The ETT data sets
    (https://github.com/zhouhaoyi/ETDataset) are such tables: a column `date`, which is
    left out, and numbers.

    Attributes:
      path: The file.
      time: Name of a column to leave out, if there is one.
      held_out: Share of the last lines that is held out.

    Raises:
      ReslabError: If the file cannot be read, or a cell is not a finite number.
    """

    path: str
    time: str = "date"
    held_out: Share = 0.2

    def load(self) -> Series:
        """Gives all lines."""
        try:
            text = pathlib.Path(self.path).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ReslabError(
                f"series csv: {self.path}",
                expected="a text file",
                got=getattr(error, "strerror", None) or "bytes that are not UTF-8",
            ) from None
        lines = [line for line in csv.reader(text.splitlines()) if line]
        header = [name.strip() for name in lines[0]] if lines else []
        kept = [i for i, name in enumerate(header) if name != self.time]
        if not kept or len(lines) < 2:
            raise ReslabError(
                f"series csv: {self.path}",
                expected="a line of names, and lines of numbers",
                got=f"{len(lines)} lines, {len(kept)} columns of numbers",
            )
        values = [
            [self._number(header, line, i, number) for i in kept]
            for number, line in enumerate(lines[1:], start=2)
        ]
        held_out = math.ceil(len(values) * self.held_out)
        names = tuple(header[i] for i in kept)
        return Series(np.array(values, np.float64), names, held_out)

    def _number(self, header, line, column, number):
        """One cell as a number.

        Raises:
          ReslabError: If it is not finite, or no number.
        """
        where = f"{self.path}: line {number}"
        if len(line) != len(header):
            raise ReslabError(
                where, expected=f"{len(header)} columns", got=str(len(line))
            )
        cell = line[column].strip()
        try:
            value = float(cell)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            missing = not cell or cell.lower() in ("nan", "na", "null", "none")
            raise ReslabError(
                f"{where}, column {header[column]!r}",
                expected="a finite number",
                got="a missing value" if missing else repr(cell),
                hint="fill or drop the line"
                if missing
                else f"time={header[column]!r} leaves the column out",
            )
        return value


build = Table
