"""ArrayRecord files, the random-access record format of Grain."""

import dataclasses
from collections.abc import Iterator

from array_record.python import array_record_module

from reslab.core.errors import ReslabError
from reslab.data.files import matching_files

# Records decoded at a time: bounds the memory, keeps the decoder busy.
CHUNK = 1024


@dataclasses.dataclass(frozen=True)
class ArrayRecordSource:
    """The records of ArrayRecord files, one document (UTF-8 bytes) a record.

    Attributes:
      path: A file, a directory (searched recursively) or a glob, here or in a bucket.
    """

    path: str = ""

    def documents(self) -> Iterator[bytes]:
        """Yields every record, file after file in the order of their paths.

        Raises:
          ReslabError: If the path names no file, or a file holds no records.
        """
        for file in matching_files(self.path, "source array_record"):
            reader = array_record_module.ArrayRecordReader(str(file.path))
            count = reader.num_records()
            if not (reader.ok() and count):
                raise ReslabError(
                    "source array_record",
                    expected="an ArrayRecord file with records",
                    got=repr(file.name),
                )
            try:
                for begin in range(0, count, CHUNK):
                    yield from reader.read(begin, min(begin + CHUNK, count))
            finally:
                reader.close()


build = ArrayRecordSource
