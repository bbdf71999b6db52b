"""Made-up text, identical on every machine: for tests."""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator

from reslab.core.bounds import Count, Seed, bounded

_CONSONANTS, _VOWELS = "bdfklmnprs", "aeiou"
_SYLLABLES = [c + v for c in _CONSONANTS for v in _VOWELS]
WORDS_PER_LINE = 10


@dataclasses.dataclass(frozen=True)
class SyntheticSource:
    """Sentences of a random Markov chain over fifty short words.

    Each word has four possible successors, equally likely, so the text costs 2
    bits a word (about 0.4 bits per byte) given the chain: a model
    that learns is soon below the count models. All choices come from SHA-256 of
    a counter, none from a random number library, so the bytes never change.

    Attributes:
      count: Number of documents.
      words: Words per document.
      seed: Chooses the vocabulary, the chain and the documents.
    """

    count: int
    words: int
    seed: int

    def documents(self) -> Iterator[bytes]:
        """Yields the documents."""
        draw = _draws(f"{self.seed} vocabulary")
        size = len(_SYLLABLES)
        # Each word begins with a different syllable, so all words are distinct.
        words = [first + _SYLLABLES[next(draw) % size] for first in _SYLLABLES]
        successors = [[next(draw) % size for _ in range(4)] for _ in words]
        for index in range(self.count):
            draw = _draws(f"{self.seed} document {index}")
            word = next(draw) % size
            pieces = []
            for position in range(1, self.words + 1):
                pieces.append(words[word])
                pieces.append(" " if position % WORDS_PER_LINE else ".\n")
                word = successors[word][next(draw) % 4]
            yield "".join(pieces).encode()


@bounded
def build(
    documents: Count = 200,
    words: Count = 200,
    seed: Seed = 0,
) -> SyntheticSource:
    """Makes documents of a random Markov chain, the same on every machine.

    Args:
      documents: Number of documents.
      words: Words per document, five bytes each.
      seed: Chooses the vocabulary, the chain and the documents.

    Returns:
      The source.

    >>> next(iter(build(documents=1, words=3).documents()))
    b'fibe pema duri '
    """
    return SyntheticSource(count=documents, words=words, seed=seed)


def _draws(key: str) -> Iterator[int]:
    """Endless integers in [0, 256), a pure function of the key."""
    for counter in itertools.count():
        yield from hashlib.sha256(f"{key} {counter}".encode()).digest()
