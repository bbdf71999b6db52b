"""Text files: one file, a directory or a glob."""

import dataclasses
from collections.abc import Iterator

from reslab.core.errors import ReslabError
from reslab.data.files import matching_files


@dataclasses.dataclass(frozen=True)
class TextSource:
    """UTF-8 text files, one document a file, in the order of their paths.

    Of a directory every `*.txt` file must be text; files of other names are
    taken if they are text and passed over if not (images, archives). Files
    named one by one or by a glob must all be text.

    Attributes:
      path: A file, a directory (searched recursively) or a glob, here or in a bucket.
    """

    path: str = ""

    def documents(self) -> Iterator[bytes]:
        """Yields the content of every file.

        Raises:
          ReslabError: If the path names no file, a file is not text, or all
            files are empty.
        """
        total = 0
        for file in matching_files(self.path, "source text"):
            try:
                document = file.path.read_bytes()
            except OSError as error:
                raise ReslabError(
                    "source text",
                    expected="a readable file",
                    got=f"{file.name!r} ({error.strerror})",
                ) from None
            problem = _problem(document)
            if problem is None:
                total += len(document)
                yield document
            elif not file.is_listed or file.path.suffix == ".txt":
                raise ReslabError(
                    "source text",
                    expected="UTF-8 text",
                    got=f"{file.name!r}, which {problem}",
                )
        if not total:
            raise ReslabError(
                "source text", expected="text", got=f"{self.path!r}, which holds none"
            )


def _problem(document: bytes) -> str | None:
    """Says what keeps these bytes from being text."""
    if 0 in document:
        return "is binary (holds NUL bytes)"
    try:
        document.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"is not UTF-8 (at byte {error.start})"
    return None


build = TextSource
