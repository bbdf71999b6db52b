"""Stored files are what they were: digests, computed once for each large file."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import sys
import time

import numpy as np

from reslab.core.errors import ReslabError
from reslab.runtime.files import write_whole
from reslab.runtime.storage import storage_errors

# Bytes that are read at a time.
PIECE = 2**24
# Smaller files are read at every start: that takes some 20 ms.
REMEMBERED = 2**24
# Larger files take seconds, which is announced.
ANNOUNCED = 2**31
# Nanoseconds since the last change before a digest is stored: a change within the
# resolution of the time stamp would go unnoticed.
SETTLED = 2 * 10**9


@dataclasses.dataclass(frozen=True)
class Content:
    """A file's content in two numbers.

    Attributes:
      sha256: Digest of its bytes.
      largest: Largest of its elements, 0 if it has none.
    """

    sha256: str
    largest: int


class Stored:
    """A file that is read during a run and must not change meanwhile.

    Attributes:
      sha256: Digest of its bytes.
      largest: Largest of its elements, 0 if it has none.

    Args:
      path: A file of little-endian integers.
      dtype: Their dtype, such as `"uint16"`.

    Raises:
      OSError: If it cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str], dtype: str):
        self._path, self._dtype = pathlib.Path(os.path.abspath(path)), dtype
        # Taken before reading, so that a change meanwhile is detected.
        self._stamp = _stamp(self._path)
        found = content(self._path, dtype)
        self.sha256, self.largest = found.sha256, found.largest

    def check(self) -> None:
        """Checks that the file is the same; reads it only if its stamp has changed.

        Raises:
          ReslabError: If it is another, or gone.
          StorageFailed: If the storage fails.
        """
        expected = f"the corpus that the run began with, sha256 {self.sha256[:12]}"
        hint = "restore it; the same command resumes from the last checkpoint"
        with storage_errors(f"{self._path}", expected=expected, hint=hint):
            stamp = _stamp(self._path)
            if stamp == self._stamp:
                return
            now = content(self._path, self._dtype).sha256
        if now != self.sha256:
            raise ReslabError(
                f"the corpus changed since the run began: {self._path}",
                expected=f"sha256 {self.sha256[:12]}",
                got=now[:12],
                hint=hint,
            )
        self._stamp = stamp


def content(path: str | os.PathLike[str], dtype: str) -> Content:
    """Reads a file once, and large files again only after a change.

    The digest of a large file is kept in the user's cache folder
    (`$XDG_CACHE_HOME/reslab/digests`) with its size, inode and times of change; no
    process can set the latter back.

    Args:
      path: A file of little-endian integers.
      dtype: Their dtype, such as `"uint16"`.

    Returns:
      Digest and largest element.

    Raises:
      OSError: If it cannot be read.
    """
    path = pathlib.Path(os.path.abspath(path))
    before = _stamp(path)
    note = _note(path)
    if before["size"] >= REMEMBERED and note is not None:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            kept = json.loads(note.read_text())
            if kept["stamp"] == before | {"dtype": dtype}:
                return Content(str(kept["sha256"]), int(kept["largest"]))
    if before["size"] >= ANNOUNCED:
        size = f"{before['size'] / 1e9:.1f} GB"
        print(f"reading {path} ({size}) to verify it, once", file=sys.stderr)
    found = _read(path, np.dtype(dtype).newbyteorder("<"))
    changed = max(before["modified"], before["changed"])
    is_settled = time.time_ns() - changed > SETTLED and _stamp(path) == before
    if before["size"] >= REMEMBERED and note is not None and is_settled:
        kept = dataclasses.asdict(found) | {"stamp": before | {"dtype": dtype}}
        with contextlib.suppress(OSError):  # It is read again next time.
            note.parent.mkdir(parents=True, exist_ok=True)
            write_whole(note, json.dumps(kept))
    return found


def _read(path: pathlib.Path, dtype: np.dtype) -> Content:
    digest, largest = hashlib.sha256(), 0
    buffer = bytearray(PIECE)
    with open(path, "rb", buffering=0) as file:
        # A short read may end inside an element; the remainder is prepended to the next
        # read.
        rest = 0
        while size := file.readinto(memoryview(buffer)[rest:]):
            digest.update(memoryview(buffer)[rest : rest + size])
            whole = (rest + size) // dtype.itemsize
            elements = np.frombuffer(buffer, dtype, whole)
            if whole:
                largest = max(largest, int(elements.max()))
            end = whole * dtype.itemsize
            left = buffer[end : rest + size]
            rest = len(left)
            buffer[:rest] = left
    return Content(digest.hexdigest(), largest)


def _stamp(path: pathlib.Path) -> dict[str, int]:
    found = path.stat()
    return {
        "size": found.st_size,
        "modified": found.st_mtime_ns,
        "changed": found.st_ctime_ns,
        "inode": found.st_ino,
        "device": found.st_dev,
    }


def _note(path: pathlib.Path) -> pathlib.Path | None:
    """Returns the path of a file's cached digest; None for a user without a home."""
    folder = os.environ.get("XDG_CACHE_HOME")
    try:
        cache = pathlib.Path(folder) if folder else pathlib.Path.home() / ".cache"
    except RuntimeError:
        return None
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:32]
    return cache / "reslab" / "digests" / f"{name}.json"
