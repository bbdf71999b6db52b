"""TensorFlow Datasets, read without TensorFlow."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets

from reslab.core.errors import ReslabError, nearest
from reslab.data.features import check_dataset


@dataclasses.dataclass(frozen=True)
class TFDSSource:
    """A text field of a TensorFlow Datasets dataset, one document an example.

    Give `name` for a dataset that the package knows (prepared under
    `directory`, downloaded if it is not there), or `directory` alone for a
    dataset that was built locally: the folder that holds `dataset_info.json`.
    The files must be in a random-access format, such as array_record.

    Attributes:
      name: Dataset name, for example `"wikipedia/20230601.en"`.
      split: Split or slice of one, for example `"train[:10%]"`.
      validation_split: Split for validation; empty to hold out every 20th
        document of `split` instead.
      field: Feature that holds the document: text, or a vector of uint8.
      directory: Data directory of `name`, or a builder directory without it.
    """

    name: str = ""
    split: str = "train"
    validation_split: str = ""
    field: str = "text"
    directory: str = ""

    def __post_init__(self) -> None:
        if not (self.name or self.directory):
            raise ReslabError("source tfds", expected="name or directory", got="none")

    def documents(self) -> Iterator[bytes]:
        """Yields the documents of the training split.

        Raises:
          ReslabError: If there is no such dataset, split or field, or its files
            cannot be read at random.
        """
        return self._documents(self.split)

    def validation_documents(self) -> Iterator[bytes] | None:
        """Yields the documents of the validation split, or is None without one."""
        return self._documents(self.validation_split) if self.validation_split else None

    def _documents(self, split: str) -> Iterator[bytes]:
        for example in self._examples(split):
            if self.field not in example:
                raise ReslabError(
                    f"source tfds has no field {self.field!r}",
                    hint=nearest(self.field, example),
                )
            yield self._to_bytes(example[self.field])

    def _examples(self, split: str) -> Any:
        check_dataset("source tfds", self.name, self.directory)
        try:
            if self.name:
                return tensorflow_datasets.data_source(
                    self.name, split=split, data_dir=self.directory or None
                )
            builder = tensorflow_datasets.builder_from_directory(self.directory)
            return builder.as_data_source(split=split)
        # TFDS raises many types; each names the dataset, split or file.
        except Exception as error:
            raise ReslabError(
                f"source tfds: {self.name or self.directory} split {split!r}",
                expected="a prepared dataset in a random-access format",
                got=f"{type(error).__name__}: {(str(error) or '?').splitlines()[0]}",
            ) from error

    def _to_bytes(self, value: Any) -> bytes:
        if isinstance(value, str):
            return value.encode()
        if isinstance(value, bytes):
            return value
        if isinstance(value, np.ndarray) and value.dtype == np.uint8:
            return value.tobytes()
        kind = getattr(value, "dtype", type(value).__name__)
        raise ReslabError(
            f"source tfds: field {self.field!r}",
            expected="text or a vector of uint8",
            got=str(kind),
        )


build = TFDSSource
