"""Files of tokens, and of the bytes that they stand for."""

import array
import dataclasses
import hashlib
import os
import pathlib
import weakref
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt

from reslab.core.errors import ReslabError
from reslab.data.encoding import SIZE_DTYPE, Encoded

# Numbers are written in pieces of at least this many bytes.
BUFFER = 2**24


@dataclasses.dataclass
class TokenFile:
    """Token ids in a file, read where they are asked for.

    They are read, not mapped: what a process has touched of a mapped file counts as
    its memory, which random windows would soon make the whole file. Any number of
    threads may read. Pickled, it is its path.

    Attributes:
      path: Raw little-endian ids.
      dtype: `"uint16"` or `"uint32"`.
      length: Number of ids; not whole if the file is cut.
    """

    path: str
    dtype: str
    length: float = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self._handle = os.open(self.path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._handle)
        self._width = np.dtype(self.dtype).itemsize
        self.length = os.fstat(self._handle).st_size / self._width
        self._count = int(self.length)

    def __reduce__(self) -> tuple[type["TokenFile"], tuple[str, str]]:
        return TokenFile, (self.path, self.dtype)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, part: slice) -> np.ndarray:
        """Reads a slice of ids, without a step."""
        begin, end, _ = part.indices(self._count)
        size = max(0, end - begin) * self._width
        read = os.pread(self._handle, size, begin * self._width)
        if len(read) != size:
            raise ReslabError(
                f"{self.path}", expected=f"{size} bytes there", got=str(len(read))
            )
        return np.frombuffer(read, np.dtype(self.dtype).newbyteorder("<"))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype)


def token_name(split: str) -> str:
    """The name of the file of a split's tokens."""
    return f"{split}.tokens"


def size_name(split: str) -> str:
    """The name of the file of the bytes that a split's tokens stand for."""
    return f"{split}.sizes"


class SplitWriter:
    """Appends documents to the files of a split.

    Sizes are written from the first document on that needs them; earlier ones are
    looked up.

    Args:
      folder: Where the files begin.
      split: Name of the split.
      dtype: Of the tokens.
      table: Bytes of each id, as `byte_table` returns.

    Attributes:
      starts: Where each document begins.
      tokens: Number of tokens so far.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        split: str,
        dtype: npt.DTypeLike,
        table: np.ndarray | None,
    ):
        self._folder, self._split, self._table = folder, split, table
        self._dtype = np.dtype(dtype)
        self._tokens = _Writer(folder / token_name(split), dtype)
        self._sizes: _Writer | None = None
        self.starts = array.array("q")
        self.tokens = 0

    def add(self, document: Encoded) -> None:
        """Appends a document."""
        if document.sizes is not None:
            self.keep_sizes()
        self.starts.append(self.tokens)
        self.tokens += len(document.tokens)
        self._tokens.add(document.tokens)
        if self._sizes is not None:
            assert self._table is not None
            self._sizes.add(document.all_sizes(self._table))

    @property
    def has_sizes(self) -> bool:
        """Returns whether sizes are written."""
        return self._sizes is not None

    def keep_sizes(self) -> None:
        """Writes the sizes of all tokens so far, and of those that follow."""
        if self._sizes is not None:
            return
        assert self._table is not None  # Only with it are there sizes.
        self._sizes = _Writer(self._folder / size_name(self._split), SIZE_DTYPE)
        self._tokens.flush()
        path = self._folder / token_name(self._split)
        written, step = TokenFile(str(path), self._dtype.name), BUFFER // 4
        for begin in range(0, len(written), step):
            self._sizes.add(self._table[written[begin : begin + step]])

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of each file, by its name."""
        found = {token_name(self._split): self._tokens.sha256}
        if self._sizes is not None:
            found[size_name(self._split)] = self._sizes.sha256
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._tokens.close()
        if self._sizes is not None:
            self._sizes.close()


class _Writer:
    """Appends little-endian numbers to a file."""

    def __init__(self, path: pathlib.Path, dtype: npt.DTypeLike):
        self._file: BinaryIO = path.open("wb", buffering=BUFFER)
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._digest = hashlib.sha256()
        self.flush, self.close = self._file.flush, self._file.close

    def add(self, numbers: np.ndarray) -> None:
        raw = numbers.astype(self._dtype, copy=False).tobytes()
        self._digest.update(raw)
        self._file.write(raw)

    @property
    def sha256(self) -> str:
        """Digest of the file so far."""
        return self._digest.hexdigest()
