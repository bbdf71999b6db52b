"""Metrics as JSON lines: `metrics.jsonl`, one object a line."""

import contextlib
import datetime
import hashlib
import json
import math
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from reslab.core.records import check_form
from reslab.runtime.files import sync, write_whole
from reslab.runtime.inside import open_inside
from reslab.runtime.storage import storage_errors


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
            self._folder = os.stat(self.path.parent)
            self._digest = self._keep(lambda record: True)
            self._open()

    @property
    def sha256(self) -> str:
        """Digest of the lines so far."""
        return self._digest.hexdigest()

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends one line."""
        with self._storage():
            if self._was_changed():
                self.begin_after(step - 1)
            self._append(line(step, metrics))

    def truncate(self, step: int) -> None:
        """Drops the lines after `step`: the file reads as an unbroken run."""
        self.close()
        with self._storage():
            self._digest = self._keep(lambda record: record["step"] <= step)
            self._open()

    def begin_after(self, step: int) -> None:
        """Begins the file again: its lines are not those of the run up to `step`.

        They are set aside in a file of their own, if there are any. The first line of
        the new file, which has no other metrics, says `"begins_after": step`.
        """
        self.close()
        now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
        aside = self.path.with_name(f"damaged-{self.path.stem}-{now}.jsonl")
        what = "are gone"
        with self._storage():
            if self.path.is_file() and self.path.stat().st_size:
                os.replace(self.path, aside)
                what = f"are not those that it wrote: set aside as {aside.name}"
            self._digest = hashlib.sha256()
            self._open()
            self._append(line(step, {"begins_after": step}))
        print(
            f"{self.path}: the run's lines up to step {step} {what}; "
            f"the file begins after step {step}",
            file=sys.stderr,
        )

    def _open(self) -> None:
        self._file = open_inside(self.path, "a")
        self._opened = os.fstat(self._file.fileno())
        self._size = self._opened.st_size

    def _append(self, text: str) -> None:
        self._file.write(text)
        self._file.flush()
        self._size += len(text.encode())
        self._digest.update(text.encode())

    def _was_changed(self) -> bool:
        """Returns whether the file was deleted, replaced or changed since."""
        try:
            if not os.path.samestat(os.stat(self.path.parent), self._folder):
                return False  # The directory is gone; the next save reports it.
            here = os.stat(self.path)
        except OSError:
            return self.path.parent.is_dir()
        is_same = os.path.samestat(here, self._opened)
        return not is_same or here.st_size != self._size

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

    def _keep(self, is_kept: Any) -> Any:
        """Rewrites the file with the whole lines that are kept, if any must go.

        Returns:
          Their SHA-256, which can be updated with appended bytes.
        """
        if not self.path.is_file():  # Other kinds of files are not opened.
            return hashlib.sha256()
        old = self.path.read_text(encoding="utf-8", errors="replace")
        lines = old.splitlines(keepends=True)
        new = "".join(
            line for line in lines if (record := _record(line)) and is_kept(record)
        )
        if new != old:
            write_whole(self.path, new)
        return hashlib.sha256(new.encode())


def line(step: int, metrics: Mapping[str, Any]) -> str:
    """The line that records the metrics of a step."""
    record = {k: _number(v) for k, v in metrics.items()} | {"step": step}
    return json.dumps({"step": step} | record, allow_nan=False) + "\n"


def read(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads the records of a `metrics.jsonl`.

    Neither a half-written last line nor one that says where the file begins is given.

    Raises:
      ReslabError: If a number in it is not finite, or too large to be one of a run.
    """
    text = pathlib.Path(path).read_text(encoding="utf-8", errors="replace")
    records = (_record(line) for line in text.splitlines(keepends=True))
    found = [record for record in records if record and "begins_after" not in record]
    for record in found:
        for name, value in record.items():
            _check_numbers(value, f"{path}: {name}")
    return found


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


def _check_numbers(value: Any, where: str) -> None:
    if isinstance(value, list):
        for item in value:
            _check_numbers(item, where)
    else:
        check_form(value, (None, bool, float), where)


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
