"""ArrayRecord files, the random-access record format of Grain."""

import contextlib
import dataclasses
import itertools
import re
from collections.abc import Iterator

from array_record.python import array_record_module

from reslab.core.errors import ReslabError
from reslab.data.encoding import say_once
from reslab.data.files import File, matching_files

# Names of such files, as TFDS and others give them.
NAME = re.compile("array_?record", re.IGNORECASE)
# Records decoded at a time: bounds the memory, keeps the decoder busy.
CHUNK = 1024


@dataclasses.dataclass(frozen=True)
class ArrayRecordSource:
    """The records of ArrayRecord files, one document (UTF-8 bytes) a record.

    Other files of a directory are passed over, and told.

    Attributes:
      path: A file, a directory (searched recursively) or a glob, here or in a bucket.
    """

    path: str = ""

    def documents(self) -> Iterator[bytes]:
        """Yields every record, file after file in the order of their paths.

        Raises:
          ReslabError: If the path names no file, or a file has no records or is
            damaged.
        """
        others, is_empty = [], True
        for file in matching_files(self.path, "source array_record"):
            is_other = file.is_listed and not NAME.search(file.path.name)
            try:
                for record in _records(file):
                    is_other = is_empty = False
                    yield record
            except ReslabError:
                if not is_other:
                    raise
                others.append(file.name)
        if others:
            say_once(f"not ArrayRecord, passed over: {', '.join(others)}")
        if is_empty:
            raise ReslabError(
                "source array_record", expected="records", got=repr(self.path)
            )


def _records(file: File) -> Iterator[bytes]:
    try:
        reader = array_record_module.ArrayRecordReader(str(file.path))
        with contextlib.closing(reader):
            count = reader.num_records()
            if not (reader.ok() and count):
                raise RuntimeError("no records")
            chunks = (
                reader.read(begin, min(begin + CHUNK, count))
                for begin in range(0, count, CHUNK)
            )
            yield from itertools.chain.from_iterable(chunks)
    except RuntimeError as error:  # The package raises no other type.
        raise ReslabError(
            f"source array_record: {file.name}",
            expected="an ArrayRecord file with records, undamaged",
            got=str(error).partition(" (")[0].partition("\n")[0],
            hint="copy it again",
        ) from None


build = ArrayRecordSource
