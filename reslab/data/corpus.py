"""Documents become two token streams, one to train on and one held out."""

import contextlib
import contextvars
import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import numpy as np

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.data.encoding import (
    Encoded,
    SizesById,
    Tokenizer,
    Tokens,
    byte_table,
    encoded,
    token_dtype,
)
from reslab.data.verification import Stored

# Every 20th document is held out; for a single document, its last 20th.
HOLD_OUT = 20


class Source(Protocol):
    """A source of documents.

    A source that has a validation split of its own also defines
    `validation_documents() -> Iterable[bytes] | None`; one that has more than documents
    defines `corpus(tokenizer) -> Corpus`.
    """

    def documents(self) -> Iterable[bytes]:
        """Gives the documents, in an order that is always the same."""
        ...


@dataclasses.dataclass(frozen=True)
class TokenStream:
    """Documents laid end to end, each as BOS and its tokens.

    Attributes:
      tokens: Ids of shape (tokens,), uint16 or uint32.
      starts: Where each document begins in `tokens`, int64, ascending.
      sizes: Bytes of its document that each token stands for, 0 for BOS, of shape
        (tokens,); None leaves bytes uncounted.
    """

    tokens: Tokens
    starts: np.ndarray
    sizes: Tokens | None = None


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A tokenized corpus and what identifies it.

    Attributes:
      train: The stream to train on.
      validation: The held-out stream.
      tokenizer: The tokenizer of both.
      sha256: Digest of every document with its length and split, in order.
      documents: Number of documents in both streams.
      bytes: Number of bytes in both streams, before tokenization.
      tokens_sha256: Digest of the files that hold the tokens, where there are any.
      stored: The files that its tokens are read from, where there are any.
      others: Streams that are also trained on, each with its share of the windows;
        `train` has the remaining documents.
    """

    train: TokenStream
    validation: TokenStream
    tokenizer: Tokenizer
    sha256: str
    documents: int
    bytes: int
    tokens_sha256: str | None = None
    stored: tuple[Stored, ...] = ()
    others: tuple[tuple[TokenStream, float], ...] = ()


def load_corpus(source: registry.Spec, tokenizer: registry.Spec) -> Corpus:
    """Reads, splits and tokenizes a corpus.

    A source with a validation split of its own keeps it. Otherwise every 20th
    document (0, 20, 40, ...) is held out, whole: windows of one document would
    leak from one split into the other. A source of one single document is cut
    at a character, and its last twentieth held out.

    Args:
      source: Spec of the family `sources`, for example `"text(path='a.txt')"`.
      tokenizer: Spec of the family `tokenizers`, for example `"bytes"`.

    Returns:
      The corpus.

    Raises:
      ReslabError: If a spec is wrong, the source cannot be read, or a split is
        empty.

    >>> corpus = load_corpus("synthetic(documents=40)", "bytes")
    >>> len(corpus.train.starts), len(corpus.validation.starts)
    (38, 2)
    """
    made = registry.make("sources", source)
    if hasattr(made, "corpus"):
        return made.corpus(tokenizer)
    if (keep := _keeper.get()) is not None:
        return keep(source, tokenizer)
    encoder: Tokenizer = registry.make("tokenizers", tokenizer)
    pieces: dict[str, list[Encoded]] = {"train": [], "validation": []}
    documents = Documents(source)
    for split, one in encoded(encoder, documents):
        pieces[split].append(one)
    table = byte_table(encoder)
    return Corpus(
        train=_stream(pieces["train"], table),
        validation=_stream(pieces["validation"], table),
        tokenizer=encoder,
        sha256=documents.sha256,
        documents=sum(map(len, pieces.values())),
        bytes=documents.bytes,
    )


@contextlib.contextmanager
def kept_by(keep: Callable[[registry.Spec, registry.Spec], Corpus]) -> Iterator[None]:
    """Makes `load_corpus` leave the tokenizing of documents to a function."""
    token = _keeper.set(keep)
    try:
        yield
    finally:
        _keeper.reset(token)


_keeper: contextvars.ContextVar[
    Callable[[registry.Spec, registry.Spec], Corpus] | None
] = contextvars.ContextVar("_keeper", default=None)


def corpus_sha256(source: registry.Spec, tokenizer: registry.Spec) -> str:
    """Digests a corpus as `load_corpus` does, without tokenizing its documents.

    Args:
      source: Spec of the family `sources`.
      tokenizer: Spec of the family `tokenizers`, for a source that is tokenized.

    Raises:
      ReslabError: As in `load_corpus`.
    """
    made = registry.make("sources", source)
    if hasattr(made, "corpus"):
        return made.corpus(tokenizer).sha256
    documents = Documents(source)
    for _ in documents:
        pass
    return documents.sha256


def held_out_corpus(source: registry.Spec, tokenizer: registry.Spec) -> Corpus:
    """Reads and tokenizes documents that are all held out.

    Args:
      source: Spec of the family `sources`.
      tokenizer: Spec of the family `tokenizers`.

    Raises:
      ReslabError: If a spec is wrong, or the source cannot be read or has no text.
    """
    encoder: Tokenizer = registry.make("tokenizers", tokenizer)
    digest, sizes = hashlib.sha256(), []

    def documents() -> Iterator[tuple[str, bytes]]:
        for document in registry.make("sources", source).documents():
            digest.update(f"validation {len(document)}\n".encode())
            digest.update(document)
            sizes.append(len(document))
            yield "validation", document

    pieces = [one for _, one in encoded(encoder, documents())]
    if not any(sizes):
        raise ReslabError(f"source {source!r}", expected="text", got="none")
    held = _stream(pieces, byte_table(encoder))
    empty = TokenStream(np.zeros(0, token_dtype(encoder)), np.zeros(0, np.int64))
    return Corpus(empty, held, encoder, digest.hexdigest(), len(sizes), sum(sizes))


class Documents(Iterator[tuple[str, bytes]]):
    """Gives each document with its split; at the end both splits must have text.

    Args:
      source: Spec of the family `sources`.
    """

    def __init__(self, source: registry.Spec):
        self._source = source
        self._documents = _split(registry.make("sources", source))
        self._digest = hashlib.sha256()
        self._sizes = {"train": 0, "validation": 0}

    def __next__(self) -> tuple[str, bytes]:
        try:
            split, document = next(self._documents)
        except StopIteration:
            for split, size in self._sizes.items():
                if not size:
                    raise ReslabError(
                        f"source {self._source!r}: {split} split",
                        expected="text",
                        got="none",
                        hint="give more text",
                    ) from None
            raise
        self._digest.update(f"{split} {len(document)}\n".encode())
        self._digest.update(document)
        self._sizes[split] += len(document)
        return split, document

    @property
    def sha256(self) -> str:
        """Digest of every document so far, with its length and split."""
        return self._digest.hexdigest()

    @property
    def bytes(self) -> int:
        """Bytes so far."""
        return sum(self._sizes.values())


def _split(source: Source) -> Iterator[tuple[str, bytes]]:
    """Gives each document with the name of the split it belongs to."""
    held_out = getattr(source, "validation_documents", lambda: None)()
    if held_out is not None:
        yield from (("train", document) for document in source.documents())
        yield from (("validation", document) for document in held_out)
        return
    documents = iter(source.documents())
    opening = list(itertools.islice(documents, 2))
    if len(opening) == 1:
        (document,) = opening
        cut = _cut(document)
        yield "train", document[:cut]
        yield "validation", document[cut:]
        return
    for index, document in enumerate(itertools.chain(opening, documents)):
        yield ("train" if index % HOLD_OUT else "validation"), document


def _cut(document: bytes) -> int:
    """Finds the start of the last twentieth, moved back to a character boundary."""
    cut = len(document) - -(-len(document) // HOLD_OUT)
    while cut > 0 and document[cut] & 0xC0 == 0x80:
        cut -= 1
    return cut


def _stream(pieces: list[Encoded], table: np.ndarray | None) -> TokenStream:
    lengths = np.array([len(piece.tokens) for piece in pieces], np.int64)
    tokens = np.concatenate([piece.tokens for piece in pieces])
    sizes: Tokens | None = None if table is None else SizesById(tokens, table)
    if table is not None and any(piece.sizes is not None for piece in pieces):
        sizes = np.concatenate([piece.all_sizes(table) for piece in pieces])
    return TokenStream(tokens, np.cumsum(lengths) - lengths, sizes)
