"""Hugging Face datasets that were saved to disk; nothing is downloaded."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from reslab.core.errors import ReslabError, missing_extra, nearest
from reslab.data.rows import text_bytes
from reslab.runtime.storage import local_path


@dataclasses.dataclass(frozen=True)
class DatasetsSource:
    """A column of a dataset that `save_to_disk` of the package datasets has written.

    Attributes:
      directory: The directory that it has written.
      split: Split for training; "" for a dataset without splits.
      validation_split: Split for validation; empty to hold out every 20th document
        instead.
      field: The column that holds the document: text, or bytes in UTF-8.
    """

    directory: str = ""
    split: str = "train"
    validation_split: str = ""
    field: str = "text"

    def documents(self) -> Iterator[bytes]:
        """Yields the documents of the training split.

        Raises:
          ReslabError: If there is no such dataset, split or column.
        """
        return self._documents(self.split)

    def validation_documents(self) -> Iterator[bytes] | None:
        """Yields the documents of the validation split, or is None without one."""
        return self._documents(self.validation_split) if self.validation_split else None

    def _documents(self, split: str) -> Iterator[bytes]:
        where = f"source datasets: {self.directory}"
        rows = self._load(where)
        if isinstance(rows, dict):
            if split not in rows:
                raise ReslabError(
                    f"{where} has no split {split!r}", hint=nearest(split, rows)
                )
            rows = rows[split]
        if self.field not in rows.column_names:
            raise ReslabError(
                f"{where} has no column {self.field!r}",
                hint=nearest(self.field, rows.column_names),
            )
        for row in rows.select_columns([self.field]):
            yield text_bytes(row[self.field], f"{where}: {self.field!r}")

    def _load(self, where: str) -> Any:
        if not self.directory:
            raise ReslabError(where, expected="directory", got="none")
        try:
            import datasets  # pyrefly: ignore[missing-import]
        except ModuleNotFoundError:
            raise missing_extra("datasets", "corpora") from None
        folder = local_path(self.directory, where)
        try:
            return datasets.load_from_disk(str(folder))
        # The package raises many kinds; each names the file.
        except Exception as error:
            raise ReslabError(
                where,
                expected="a directory that `save_to_disk` has written",
                got=(str(error) or type(error).__name__).splitlines()[0],
            ) from None


build = DatasetsSource
