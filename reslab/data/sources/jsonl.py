"""JSON lines, one document a line: the usual form of large corpora."""

import codecs
import dataclasses
import gzip
import io
import zlib
from collections.abc import Iterator
from typing import Any

from reslab.core.errors import ReslabError, missing_extra
from reslab.core.records import parse_record
from reslab.data.encoding import say_once
from reslab.data.files import File, matching_files

# Names of files that hold JSON lines, packed or not.
SUFFIXES = {".jsonl", ".ndjson"}


@dataclasses.dataclass(frozen=True)
class JsonLinesSource:
    """A text field of JSON lines, read line by line; plain, `.gz` or `.zst`.

    Blank lines are passed over. Of a directory every `*.jsonl` and `*.ndjson` must be
    JSON lines; files of other names are taken if they begin with such a line, and told
    and passed over if not (a README, an index).

    Attributes:
      path: A file, a directory (searched recursively) or a glob, here or in a bucket.
      field: The field that holds the document.
    """

    path: str = ""
    field: str = "text"

    def documents(self) -> Iterator[bytes]:
        """Yields the field of every line, file after file in the order of their paths.

        Raises:
          ReslabError: If the path names no file, no file has a line, or a line has no
            such text.
        """
        others, is_empty = [], True
        for file in matching_files(self.path, "source jsonl"):
            is_other = file.is_listed and not SUFFIXES & set(file.path.suffixes)
            for number, line in enumerate(_lines(file), start=1):
                if not line.removeprefix(codecs.BOM_UTF8).strip():
                    continue
                where = f"source jsonl: {file.name}, line {number}"
                try:
                    document = self._document(line, where)
                except ReslabError:
                    if not is_other:
                        raise
                    others.append(file.name)
                    break
                is_other = is_empty = False
                yield document
        if others:
            say_once(f"not JSON lines, passed over: {', '.join(others)}")
        if is_empty:
            raise ReslabError("source jsonl", expected="lines", got=repr(self.path))

    def _document(self, line: bytes, where: str) -> bytes:
        """Returns the text on a line; errors do not show it, whatever file it is."""
        record = parse_record(line, where)
        text, got = record.get(self.field), "no such field"
        if self.field in record:
            got = type(text).__name__
        if isinstance(text, str):
            try:
                return text.encode()
            except UnicodeEncodeError:
                got = "half of a surrogate pair"
        raise ReslabError(where, expected=f"text in {self.field!r}", got=got)


def _lines(file: File) -> Iterator[bytes]:
    """The lines of a file, or of what is packed in it.

    Raises:
      ReslabError: If the archive is damaged, or the file cannot be read.
    """
    damages: Any = (OSError, EOFError, zlib.error)
    opener: Any = gzip.open if file.path.suffix == ".gz" else open
    if file.path.suffix == ".zst":
        try:
            import zstandard  # pyrefly: ignore[missing-import]
        except ModuleNotFoundError:
            raise missing_extra("zstandard", "corpora") from None
        opener, damages = zstandard.open, (*damages, zstandard.ZstdError)
    try:
        with opener(file.path, "rb") as lines:
            # The reader of zstandard cannot be iterated by lines.
            yield from io.BufferedReader(lines) if opener is not open else lines
    except damages as error:
        raise ReslabError(
            f"source jsonl: {file.name}",
            expected="a file that can be read",
            got=str(error) or type(error).__name__,
        ) from None


build = JsonLinesSource
