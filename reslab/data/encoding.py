"""Documents become tokens, and each token stands for bytes of its document."""

import functools
import hashlib
import sys
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from reslab.core import registry
from reslab.core.errors import ReslabError

# Bytes of documents that are also decoded, to see whether the tokenizer keeps them.
DECODED = 2**20
# Dtype of sizes: a run of unknown text may be one token.
SIZE_DTYPE = np.uint32


class Tokenizer(Protocol):
    """Conversion between bytes and token ids.

    A tokenizer that reads a file also has `sha256`, a digest of all that decides its
    ids: the same file under another name is the same tokenizer. One whose ids stand
    for other numbers of bytes in other places defines `encode_sized`, too:

        encode_sized(document) -> (ids, sizes)

    with the bytes of the document that each id stands for, which add up to the
    document; None in their place if `byte_lengths` holds for this document. Where some
    text has no id of its own, `unknown` is the id that stands for it.
    """

    @property
    def vocabulary_size(self) -> int:
        """Number of ids."""
        ...

    @property
    def bos(self) -> int:
        """The id that begins a document."""
        ...

    def encode(self, document: bytes) -> np.ndarray:
        """Encodes a document to ids of shape (tokens,), without BOS."""
        ...

    def decode(self, ids: npt.ArrayLike) -> str:
        """Decodes ids to text; BOS and ids beyond the vocabulary are dropped."""
        ...

    def byte_lengths(self) -> np.ndarray:
        """Returns the bytes that each id stands for, shape (vocabulary,): 0 for BOS."""
        ...


class Tokens(Protocol):
    """Numbers of tokens in order: an array, or a file that is read when asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> np.ndarray: ...

    def __array__(self) -> np.ndarray: ...


class SizesById:
    """Bytes of tokens whose id alone decides them.

    Args:
      tokens: The ids.
      table: Bytes of each id, as `byte_lengths` returns.
    """

    def __init__(self, tokens: Tokens, table: np.ndarray):
        self._tokens, self._table = tokens, table

    def of(self, tokens: Tokens) -> "SizesById":
        """Looks up the sizes of other tokens by the same table."""
        return SizesById(tokens, self._table)

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, part: slice) -> np.ndarray:
        """Looks up the sizes of a slice of tokens.

        A file that changes under a run may have any ids; the next save refuses it.
        """
        return self._table.take(self._tokens[part], mode="clip")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or self._table.dtype)


def byte_table(tokenizer: Tokenizer) -> np.ndarray | None:
    """Bytes of each id; None for tokenizers that give tokens alone."""
    count = getattr(tokenizer, "byte_lengths", None)
    return None if count is None else count()


class Encoded(NamedTuple):
    """A document as tokens.

    Attributes:
      tokens: BOS and the ids, in the vocabulary's dtype.
      sizes: Bytes that each stands for, uint32; None if `byte_lengths` holds.
    """

    tokens: np.ndarray
    sizes: np.ndarray | None

    def all_sizes(self, table: np.ndarray) -> np.ndarray:
        """Bytes that each token stands for, given `byte_lengths`."""
        sizes = table[self.tokens] if self.sizes is None else self.sizes
        return sizes.astype(SIZE_DTYPE, copy=False)


def token_dtype(tokenizer: Tokenizer) -> type[np.unsignedinteger]:
    """The smallest dtype that holds the ids of a tokenizer."""
    return np.uint16 if tokenizer.vocabulary_size <= 2**16 else np.uint32


def encoded(
    tokenizer: Tokenizer, documents: Iterable[tuple[str, bytes]]
) -> Iterator[tuple[str, Encoded]]:
    """Encodes documents one after the other, and tells what the tokenizer loses.

    Yields:
      The split of each, and its tokens.

    Raises:
      ReslabError: If the tokenizer does not keep to its protocol.
    """
    table, losses = byte_table(tokenizer), _Losses(tokenizer)
    for split, document in documents:
        if table is None:
            yield split, Encoded(encode_document(tokenizer, document), None)
            continue
        one = encode_sized(tokenizer, document, table)
        losses.add(document, one.tokens)
        yield split, one
    losses.tell()


def encode_document(tokenizer: Tokenizer, document: bytes) -> np.ndarray:
    """Encodes a document as BOS and its tokens, in the vocabulary's dtype.

    Raises:
      ReslabError: If the tokenizer gives an id beyond its vocabulary, or BOS inside
        the document.
    """
    return _with_bos(tokenizer, np.asarray(tokenizer.encode(document)))


def encode_sized(tokenizer: Tokenizer, document: bytes, table: np.ndarray) -> Encoded:
    """Encodes a document and counts its bytes by token, exactly.

    Args:
      tokenizer: The tokenizer.
      document: The document.
      table: What its `byte_lengths` returns.

    Raises:
      ReslabError: If the bytes of the tokens do not add up to the document, or its
        ids are wrong as in `encode_document`.
    """
    if hasattr(tokenizer, "encode_sized"):
        ids, sizes = tokenizer.encode_sized(document)
    else:
        ids, sizes = tokenizer.encode(document), None
    tokens = _with_bos(tokenizer, np.asarray(ids))
    counted = int((table[tokens] if sizes is None else sizes).sum())
    # Text that leaves no token at all is not predicted.
    if counted != len(document) and len(tokens) > 1:
        raise ReslabError(
            "the tokenizer miscounts bytes",
            expected=f"{len(document)}, as the document has",
            got=f"{counted} of its {len(tokens) - 1} tokens",
            hint="encode_sized, in reslab.data.encoding.Tokenizer",
        )
    if sizes is not None:
        sizes = np.concatenate([[0], sizes]).astype(SIZE_DTYPE)
    return Encoded(tokens, sizes)


def _with_bos(tokenizer: Tokenizer, ids: np.ndarray) -> np.ndarray:
    size = tokenizer.vocabulary_size
    if ids.size and not 0 <= ids.min() <= ids.max() < size:
        wrong = ids[(ids < 0) | (ids >= size)][0]
        raise beyond_vocabulary("the tokenizer", int(wrong), size)
    if (ids == tokenizer.bos).any():
        raise ReslabError(
            "the tokenizer gives BOS inside a document",
            expected="BOS only where a document begins",
            got=f"id {tokenizer.bos} within {len(ids)} tokens",
        )
    tokens = np.empty(len(ids) + 1, token_dtype(tokenizer))
    tokens[0] = tokenizer.bos
    tokens[1:] = ids
    return tokens


class _Losses:
    """Counts text that a tokenizer changes or has no token for."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._unknown_id = getattr(tokenizer, "unknown", None)
        self._decoded = self._documents = self._changed = 0
        self._tokens = self._unknown = 0
        self._example: tuple[str, str] | None = None

    def add(self, document: bytes, tokens: np.ndarray) -> None:
        self._tokens += len(tokens) - 1
        if self._unknown_id is not None:
            self._unknown += int((tokens == self._unknown_id).sum())
        if self._decoded < DECODED:
            self._decoded += len(document)
            self._documents += 1
            text = document.decode("utf-8", errors="replace")
            back = self._tokenizer.decode(tokens)
            if back != text:
                self._changed += 1
                self._example = self._example or _difference(text, back)

    def tell(self) -> None:
        """Says on standard error what was lost, if anything."""
        if self._example is not None:
            text, back = self._example
            say_once(
                f"the tokenizer changes {self._changed:,} of the first "
                f"{self._documents:,} documents ({text!r} becomes {back!r}): bits per "
                "byte divide the loss of the changed text by the bytes of the original"
            )
        if self._unknown:
            say_once(
                f"{self._unknown / self._tokens:.2%} of the tokens are unknown ones: "
                "bits per byte leave out the text behind them, and are too low to "
                "compare with other tokenizers"
            )


def _difference(text: str, back: str, size: int = 12) -> tuple[str, str]:
    """Cuts both texts to some characters around their first difference."""
    pairs = zip(text, back, strict=False)
    same = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    begin = min(len(text), len(back)) if same is None else same
    begin = max(0, begin - size // 3)
    return text[begin : begin + size], back[begin : begin + size]


@functools.cache  # A command may load the same corpus twice.
def say_once(line: str) -> None:
    """Says a line on standard error, once in a process."""
    print(line, file=sys.stderr)


def beyond_vocabulary(what: str, token: int, vocabulary: int) -> ReslabError:
    """Builds the error for an id that the vocabulary does not have."""
    return ReslabError(
        f"{what}: token id {token}",
        expected=f"below the vocabulary {vocabulary}",
        hint="the tokenizer that wrote the tokens, as data.tokenizer",
    )


def tokenizer_sha256(tokenizer: Tokenizer, spec: registry.Spec) -> str:
    """Digests what decides a tokenizer's ids: its file, or else its spec.

    Args:
      tokenizer: The tokenizer.
      spec: What it was made from.
    """
    own = getattr(tokenizer, "sha256", None)
    if isinstance(own, str):
        return own
    known: list[Any] = [tokenizer.vocabulary_size, tokenizer.bos]
    if isinstance(spec, str):
        parsed = registry.parse(spec)
        known += [parsed.name, sorted(parsed.arguments.items())]
    else:
        known.append(getattr(spec, "__qualname__", type(spec).__qualname__))
    return hashlib.sha256(repr(known).encode()).hexdigest()
