"""JSON lines, one document a line: the usual form of large corpora."""

import dataclasses
import gzip
import json
from collections.abc import Iterator

from reslab.core.errors import ReslabError
from reslab.data.files import matching_files


@dataclasses.dataclass(frozen=True)
class JsonLinesSource:
    """A text field of JSON lines, plain or gzipped (`.gz`), read line by line.

    Attributes:
      path: A file, a directory (searched recursively) or a glob.
      field: The field that holds the document.
    """

    path: str = ""
    field: str = "text"

    def documents(self) -> Iterator[bytes]:
        """Yields the field of every line, file after file in the order of their paths.

        Raises:
          ReslabError: If the path names no file, or a line has no such text.
        """
        for file in matching_files(self.path, "source jsonl"):
            opener = gzip.open if file.suffix == ".gz" else open
            with opener(file, "rb") as lines:
                for number, line in enumerate(lines, start=1):
                    try:
                        yield json.loads(line)[self.field].encode()
                    except (ValueError, KeyError, TypeError, AttributeError):
                        raise ReslabError(
                            f"source jsonl: {file}, line {number}",
                            expected=f"an object with text in {self.field!r}",
                            got=repr(line[:60].decode(errors="replace")),
                        ) from None


build = JsonLinesSource
