"""Made-up token ids, written as numbers: for models without a tokenizer."""

import dataclasses
import hashlib
from collections.abc import Iterator
from typing import Annotated

import numpy as np

from reslab.core.bounds import Bounds, Count, Seed, Whole, bounded


@dataclasses.dataclass(frozen=True)
class NumbersSource:
    """Documents of independent, equally likely numbers, for the tokenizer `ids`.

    They say nothing of a language: probes, transforms and speed can be tried on them,
    losses mean little. All choices come from SHAKE-256, so the bytes never change.

    Attributes:
      size: The numbers are below this.
      bos: The number that is left out.
      count: Number of documents.
      length: Numbers in each.
      seed: Chooses them.
    """

    size: int
    bos: int
    count: int
    length: int
    seed: int

    def documents(self) -> Iterator[bytes]:
        """Yields the documents."""
        for index in range(self.count):
            key = f"{self.seed} {index}".encode()
            words = hashlib.shake_256(key).digest(4 * self.length)
            drawn = np.frombuffer(words, "<u4") % (self.size - 1)
            # Numbers from BOS on move up by one.
            drawn = drawn + (drawn >= self.bos)
            yield " ".join(map(str, drawn.tolist())).encode()


@bounded
def build(
    size: Annotated[int, Bounds(least=2, most=2**24)] = 256,
    bos: Whole = 0,
    documents: Count = 64,
    length: Count = 512,
    seed: Seed = 0,
) -> NumbersSource:
    """Makes documents of random numbers, the same on every machine.

    Args:
      size: The numbers are below this.
      bos: The number that is left out.
      documents: Number of documents.
      length: Numbers in each.
      seed: Chooses them.

    Returns:
      The source.

    >>> next(iter(build(size=97, length=4).documents()))
    b'81 19 96 76'
    """
    return NumbersSource(size, bos, documents, length, seed)
