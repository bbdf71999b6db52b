"""Bytes as tokens: nothing to train, nothing unknown."""

import dataclasses
from typing import ClassVar

import numpy as np
import numpy.typing as npt


@dataclasses.dataclass(frozen=True)
class BytesTokenizer:
    """Token 0 begins a document; byte b is token b + 1.

    >>> tokenizer = BytesTokenizer()
    >>> ids = tokenizer.encode(b"Hi")
    >>> ids.tolist(), tokenizer.decode(ids)
    ([73, 106], 'Hi')
    """

    vocabulary_size: ClassVar[int] = 257
    bos: ClassVar[int] = 0

    def encode(self, document: bytes) -> np.ndarray:
        """Encodes a document to uint16 ids of shape (bytes,), without BOS."""
        return np.frombuffer(document, np.uint8).astype(np.uint16) + np.uint16(1)

    def decode(self, ids: npt.ArrayLike) -> str:
        """Decodes ids to text; BOS and ids beyond the vocabulary are dropped."""
        ids = np.asarray(ids)
        ids = ids[(ids > self.bos) & (ids < self.vocabulary_size)]
        return (ids - 1).astype(np.uint8).tobytes().decode("utf-8", errors="replace")

    def byte_lengths(self) -> np.ndarray:
        """Returns the bytes that each id stands for, shape (vocabulary,): 0 for BOS."""
        lengths = np.ones(self.vocabulary_size, np.int32)
        lengths[self.bos] = 0
        return lengths


build = BytesTokenizer
