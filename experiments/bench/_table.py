"""Tables of figures, one row a measurement."""

import csv
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any


def append(
    table: pathlib.Path, rows: Iterable[Mapping[str, Any]], fields: Iterable[str] = ()
) -> None:
    """Appends rows to a CSV, each as soon as it is there.

    Args:
      table: The file; made with a header where there is none.
      rows: The rows.
      fields: The columns; those of the first row if empty.
    """
    is_new, writer = not table.exists(), None
    with table.open("a", newline="") as file:
        for row in rows:
            if writer is None:
                writer = csv.DictWriter(file, list(fields) or list(row))
                if is_new:
                    writer.writeheader()
            writer.writerow(row)
            file.flush()
