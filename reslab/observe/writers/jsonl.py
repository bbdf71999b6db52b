"""Metrics as JSON lines: `metrics.jsonl`, one object a line."""

import contextlib
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from reslab.core.files import sync, write_whole
from reslab.core.inside import open_inside
from reslab.core.storage import storage_errors


class JsonLines:
    """Appends `{"step": ..., name: value, ...}` to a file, `metrics.jsonl`.

    Every line is flushed, so a kill loses at most the line being written; such a
    half line is dropped when the file is opened again. A value is a number, or a
    list of lists of them; JSON has no infinity and no NaN: they are written as null.

    Attributes:
      path: The file.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = pathlib.Path(path)
        with self._storage():
            self._keep(lambda record: True)
            self._file = open_inside(self.path, "a")

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends one line."""
        text = line(step, metrics)
        with self._storage():
            self._file.write(text)
            self._file.flush()

    def truncate(self, step: int) -> None:
        """Drops the lines after `step`: the file reads as an unbroken run."""
        self.close()
        with self._storage():
            self._keep(lambda record: record["step"] <= step)
            self._file = open_inside(self.path, "a")

    def sync(self) -> None:
        """Waits until the lines are on the disk."""
        with self._storage():
            os.fsync(self._file.fileno())
            sync(self.path.parent)

    def close(self) -> None:
        """Closes the file."""
        with self._storage():
            self._file.close()

    def _storage(self) -> contextlib.AbstractContextManager[None]:
        return storage_errors(f"{self.path}", expected="a file that can be written")

    def _keep(self, is_kept: Any) -> None:
        """Rewrites the file with the whole lines that are kept, if any must go."""
        if not self.path.exists():
            return
        old = self.path.read_text(encoding="utf-8", errors="replace")
        lines = old.splitlines(keepends=True)
        new = "".join(
            line for line in lines if (record := _record(line)) and is_kept(record)
        )
        if new != old:
            write_whole(self.path, new)


def line(step: int, metrics: Mapping[str, Any]) -> str:
    """The line that records the metrics of a step."""
    record = {k: _number(v) for k, v in metrics.items()} | {"step": step}
    return json.dumps({"step": step} | record, allow_nan=False) + "\n"


def read(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads the records of a `metrics.jsonl`, without a half-written last line."""
    text = pathlib.Path(path).read_text(encoding="utf-8", errors="replace")
    records = (_record(line) for line in text.splitlines(keepends=True))
    return [record for record in records if record]


def _record(line: str) -> dict[str, Any] | None:
    """The object on a line, or None when a kill left it incomplete."""
    if not line.endswith("\n"):
        return None
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        return None
    return record if all(map(_is_number, record.values())) else None


def _is_number(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_number, value))
    return value is None or isinstance(value, int | float)


def _number(value: Any) -> Any:
    if isinstance(value, list):
        return [_number(item) for item in value]
    number = value if isinstance(value, int) else float(value)
    return number if math.isfinite(number) else None


def build(directory: str) -> JsonLines:
    """Opens `metrics.jsonl` of a run directory."""
    return JsonLines(pathlib.Path(directory) / "metrics.jsonl")
