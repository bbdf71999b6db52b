"""Token ids written as numbers, for a model whose tokenizer is not there."""

import dataclasses
import re
from typing import Annotated

import numpy as np
import numpy.typing as npt

from reslab.core.bounds import Bounds, Whole, bounded
from reslab.core.errors import ReslabError


@bounded
@dataclasses.dataclass(frozen=True)
class IdsTokenizer:
    """Reads a document of numbers, with white space between them, as ids.

    Attributes:
      size: Number of ids.
      bos: The id that begins a document, which is not in one.

    Raises:
      ReslabError: If `bos` is not below `size`; or, when encoding, if a document holds
        anything else or a number that is no id.

    >>> tokenizer = IdsTokenizer(size=97)
    >>> ids = tokenizer.encode(b"5 17 3")
    >>> ids.tolist(), tokenizer.decode(ids)
    ([5, 17, 3], '5 17 3')
    """

    size: Annotated[int, Bounds(least=2, most=2**24)] = 256
    bos: Whole = 0

    def __post_init__(self) -> None:
        if self.bos >= self.size:
            raise ReslabError(
                "tokenizer ids: bos", expected=f"below {self.size}", got=str(self.bos)
            )

    @property
    def vocabulary_size(self) -> int:
        """Number of ids."""
        return self.size

    def encode(self, document: bytes) -> np.ndarray:
        """Encodes a document to uint32 ids of shape (numbers,), without BOS."""
        return self.encode_sized(document)[0]

    def encode_sized(self, document: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Encodes a document; each id stands for its digits and the space around it."""
        words = document.split()
        wrong = [word for word in words if not self._is_id(word)]
        if wrong:
            raise ReslabError(
                "tokenizer ids",
                expected=f"numbers below {self.size}, without {self.bos}",
                got=repr(wrong[0].decode(errors="replace")),
                hint="a text of ids, or a checkpoint with its tokenizer.json",
            )
        starts = [match.start() for match in re.finditer(rb"\d+", document)]
        ends = [0, *starts[1:], len(document)]
        ids = np.array([int(word) for word in words], np.uint32)
        return ids, np.diff(ends) if words else np.zeros(0, np.int64)

    def _is_id(self, word: bytes) -> bool:
        is_short = word.isdigit() and len(word) < 10
        return is_short and int(word) < self.size and int(word) != self.bos

    def decode(self, ids: npt.ArrayLike) -> str:
        """Decodes ids to numbers; BOS and ids beyond the vocabulary are dropped."""
        ids = np.asarray(ids)
        ids = ids[(ids != self.bos) & (ids >= 0) & (ids < self.size)]
        return " ".join(map(str, ids.tolist()))

    def byte_lengths(self) -> np.ndarray:
        """Returns the bytes that each id is written in, shape (size,): 0 for BOS."""
        lengths = np.array([len(str(one)) for one in range(self.size)], np.int32)
        lengths[self.bos] = 0
        return lengths


build = IdsTokenizer
