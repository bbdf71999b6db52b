"""Parquet files, the columnar format of most published corpora."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from reslab.core.errors import ReslabError, missing_extra, nearest
from reslab.data.files import File, matching_files
from reslab.data.rows import text_bytes

# Rows decoded at a time, which bounds the memory.
CHUNK = 1024


@dataclasses.dataclass(frozen=True)
class ParquetSource:
    """A column of Parquet files, one document a row.

    Of a directory, files with other names than `*.parquet` are passed over.

    Attributes:
      path: A file, a directory (searched recursively) or a glob, here or in a bucket.
      field: The column that holds the document: text, or bytes in UTF-8.
    """

    path: str = ""
    field: str = "text"

    def documents(self) -> Iterator[bytes]:
        """Yields the column of every file, file after file in the order of their paths.

        Raises:
          ReslabError: If the path names no file, or a file has no such column or is
            damaged.
        """
        try:
            from pyarrow import parquet
        except ModuleNotFoundError:
            raise missing_extra("pyarrow", "corpora") from None
        is_empty = True
        for file in matching_files(self.path, "source parquet"):
            if file.is_listed and file.path.suffix != ".parquet":
                continue
            for value in self._values(parquet, file):
                is_empty = False
                yield text_bytes(value, f"source parquet: {file.name}: {self.field!r}")
        if is_empty:
            raise ReslabError("source parquet", expected="rows", got=repr(self.path))

    def _values(self, parquet: Any, file: File) -> Iterator[Any]:
        try:
            with parquet.ParquetFile(file.path) as opened:
                names = opened.schema_arrow.names
                if self.field not in names:
                    raise ReslabError(
                        f"source parquet: {file.name} has no column {self.field!r}",
                        hint=nearest(self.field, names),
                    )
                for batch in opened.iter_batches(CHUNK, columns=[self.field]):
                    yield from batch.column(0).to_pylist()
        except ReslabError:
            raise
        except (OSError, ValueError) as error:  # Arrow's own are among these.
            raise ReslabError(
                f"source parquet: {file.name}",
                expected="a Parquet file, undamaged",
                got=(str(error) or type(error).__name__).splitlines()[0],
            ) from None


build = ParquetSource
