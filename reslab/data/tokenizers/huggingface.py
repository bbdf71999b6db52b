"""A tokenizer file of the Hugging Face `tokenizers` library."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from reslab.core.bounds import Bounds, bounded
from reslab.core.errors import ReslabError, missing_extra, nearest
from reslab.data.encoding import say_once
from reslab.data.spans import character_starts, spread

# Ids may leave gaps, as in files with reserved ids, but at most this many plus the
# number of tokens: the model has a row for every id.
GAPS = 2**16
# Encoded once, so that an inconsistent file is rejected at the start.
PROBE = "Every layer, 12 of them:\n\tx = x + f(x) \u2260 \U0001f600"


@bounded
@dataclasses.dataclass
class HuggingFaceTokenizer:
    """Encodes with a `tokenizer.json`.

    Documents are decoded as UTF-8 (undecodable bytes become U+FFFD) and encoded
    without the file's own special tokens: the corpus puts one BOS before each
    document, whatever the model's convention. A special token that is spelled in a
    document is text like any other. Documents are never cut or padded, whatever the
    file asks for.

    Attributes:
      path: Path of the `tokenizer.json`.
      bos_token: The token that begins a document, as the file writes it, for
        example `"<|endoftext|>"`. None adds one id after the vocabulary.
      size: Number of ids of the model that reads them, which may have more rows than
        the file has tokens, or lack special ones; 0 is the file's.
      bos: The id of that token.
      vocabulary_size: Number of ids, BOS included.
      unknown: The id of text that has no id of its own, if there is one.
      sha256: Digest of the file and of BOS.

    Raises:
      ReslabError: If the package is missing, the file is not a tokenizer, has ids far
        beyond their number, draws at random (BPE dropout), or has no such token.
    """

    path: str = ""
    bos_token: str | None = None
    size: Annotated[int, Bounds(least=0, most=2**24)] = 0
    bos: int = dataclasses.field(init=False)
    vocabulary_size: int = dataclasses.field(init=False)
    unknown: int | None = dataclasses.field(init=False)
    sha256: str = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        try:
            import tokenizers
        except ImportError:
            raise missing_extra("tokenizers", "hf") from None
        file = pathlib.Path(self.path).expanduser()
        if not file.is_file():
            raise ReslabError(
                "tokenizer huggingface: path",
                expected="a tokenizer.json",
                got=f"{self.path!r}, which is no file",
            )
        try:
            raw = file.read_bytes()
            text = raw.decode("utf-8")
            self._settings: Mapping[str, Any] = json.loads(text)
            with _silenced():
                self._tokenizer = tokenizers.Tokenizer.from_str(text)
                self._tokenizer.encode(PROBE, add_special_tokens=False)
        # The library raises bare Exception for a file of another form, and Rust panics,
        # which do not derive from it, for an inconsistent one.
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
                raise
            raise ReslabError(
                "tokenizer huggingface: path",
                expected="a tokenizer.json",
                got=f"{self.path!r} ({(str(error) or '?').splitlines()[0]})",
            ) from None
        self._vocabulary: Mapping[str, int] = self._tokenizer.get_vocab()
        self._size = 1 + max(self._vocabulary.values(), default=-1)
        self._check_model()
        self._switch_off_settings()
        if self.bos_token is None:
            self.bos = self._size
        elif self.bos_token in self._vocabulary:
            self.bos = self._vocabulary[self.bos_token]
        else:
            added = (token["content"] for token in self._added_tokens())
            raise ReslabError(
                f"tokenizer huggingface: {self.path!r} has no token {self.bos_token!r}",
                hint=nearest(self.bos_token, added),
            )
        self.vocabulary_size = self.size or max(self._size, self.bos + 1)
        self._check_size()
        model = self._settings.get("model") or {}
        unknown = model.get("unk_id", self._vocabulary.get(model.get("unk_token", "")))
        self.unknown = None if unknown == self.bos else unknown
        told = f"\nbos {self.bos}" + (f"\nsize {self.size}" if self.size else "")
        self.sha256 = hashlib.sha256(raw + told.encode()).hexdigest()

    def _check_size(self) -> None:
        """Checks that the model has a row for every token that stands for text."""
        special = {t["content"] for t in self._added_tokens() if t["special"]}
        beyond = [
            token
            for token, index in self._vocabulary.items()
            if index >= self.vocabulary_size and token not in special
        ]
        if beyond or self.bos >= self.vocabulary_size:
            raise ReslabError(
                f"tokenizer huggingface: {self.path!r}: size",
                expected=f"at least {max(self._size, self.bos + 1)}",
                got=str(self.size),
            )

    def _check_model(self) -> None:
        if self._size > 2 * len(self._vocabulary) + GAPS:
            raise ReslabError(
                f"tokenizer huggingface: {self.path!r} has id {self._size - 1}",
                expected=f"ids near the number of its tokens, {len(self._vocabulary)}",
            )
        if getattr(self._tokenizer.model, "dropout", None):
            raise ReslabError(
                f"tokenizer huggingface: {self.path!r} draws its merges at random",
                expected="a BPE model without dropout",
                got=f"dropout {self._tokenizer.model.dropout:g}",
            )

    def _switch_off_settings(self) -> None:
        """Switches off what a fine-tuned model's file would do to documents."""
        found = [
            name
            for name in ("truncation", "padding")
            if getattr(self._tokenizer, name) is not None
        ]
        if found:
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            say_once(f"{self.path}: its own {' and '.join(found)} not applied")
        # Special tokens separate documents in the corpus; they never stand for text.
        self._tokenizer.encode_special_tokens = True

    def encode(self, document: bytes) -> np.ndarray:
        """Encodes a document to uint32 ids of shape (tokens,), without BOS."""
        return self._encode(document.decode("utf-8", errors="replace"))[0]

    def encode_sized(self, document: bytes) -> tuple[np.ndarray, np.ndarray | None]:
        """Encodes a document, and counts the bytes of it that each id stands for.

        A token stands for the text from the end of the token before it to its own
        end; the tokens of one character share its bytes evenly.

        Returns:
          The ids, and int64 sizes that add up to the document; None in place of the
          sizes where those of `byte_lengths` do.
        """
        ids, pieces = self._encode(document.decode("utf-8", errors="replace"))
        by_id = self._table[ids]
        if self._is_byte_level and int(by_id.sum()) == len(document):
            return ids, None
        starts, is_utf8 = character_starts(document)
        if not is_utf8:
            say_once(f"{self.path}: bytes that are not UTF-8 are read as U+FFFD")
        ends = [begin + end for begin, one in pieces for _, end in one.offsets]
        sizes = spread(starts[np.asarray(ends, np.int64)], len(document))
        # A sum alone says little here: a space put in front and one joined cancel.
        return ids, None if np.array_equal(sizes, by_id) else sizes

    def _encode(self, text: str) -> tuple[np.ndarray, list[tuple[int, Any]]]:
        """Encodes text: all ids, and its pieces with the places where they begin."""
        pieces = [(0, self._piece(text))]
        if self.bos_token and self.bos in pieces[0][1].ids:
            # The model itself has it as a token: no piece may contain all of it.
            half = len(self.bos_token) // 2
            first, second = map(
                re.escape, (self.bos_token[:half], self.bos_token[half:])
            )
            pieces, begin = [], 0
            for piece in re.split(f"(?<={first})(?={second})", text):
                pieces.append((begin, self._piece(piece)))
                begin += len(piece)
        ids = [index for _, piece in pieces for index in piece.ids]
        return np.asarray(ids, np.uint32), pieces

    def _piece(self, text: str) -> Any:
        try:
            return self._tokenizer.encode(text, add_special_tokens=False)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
                raise
            raise ReslabError(
                f"tokenizer huggingface: {self.path!r}",
                expected="a tokenizer that encodes any text",
                got=(str(error) or type(error).__name__).splitlines()[0],
            ) from None

    def decode(self, ids: npt.ArrayLike) -> str:
        """Decodes ids to text; BOS and ids beyond the vocabulary are dropped."""
        ids = np.asarray(ids)
        ids = ids[(ids != self.bos) & (ids >= 0) & (ids < self._size)]
        return self._tokenizer.decode(ids.tolist())

    def byte_lengths(self) -> np.ndarray:
        """Returns the bytes that each id stands for, shape (vocabulary,): 0 for BOS.

        Holds for byte-level files (GPT-2 and its kin). Where a file changes the text
        (lower-casing, joining spaces) `encode_sized` counts the document instead.
        """
        return self._table.copy()

    @functools.cached_property
    def _is_byte_level(self) -> bool:
        parts = [self._settings.get("pre_tokenizer"), self._settings.get("decoder")]
        return '"ByteLevel"' in json.dumps(parts)

    @functools.cached_property
    def _table(self) -> np.ndarray:
        decoder = self._settings.get("decoder") or {}
        prefix = decoder.get("prefix", "") if decoder.get("type") == "WordPiece" else ""
        lengths = np.zeros(max(self.vocabulary_size, self._size), np.int32)
        for token, index in self._vocabulary.items():
            if (
                self._is_byte_level
            ):  # each character of such a token stands for one byte
                lengths[index] = len(token)
            elif len(token) == 6 and token.startswith("<0x") and token[-1] == ">":
                lengths[index] = 1  # byte fallback
            else:
                text = token.removeprefix(prefix).replace("▁", " ")
                lengths[index] = len(text.encode())
        unknown = (self._settings.get("model") or {}).get("unk_token")
        for token in self._added_tokens():
            # An unknown token stands for text other than its name.
            is_unknown = token["special"] and token["content"] == unknown
            literal = 0 if is_unknown else len(token["content"].encode())
            lengths[token["id"]] = literal
        lengths[self.bos] = 0
        return lengths[: self.vocabulary_size]

    def _added_tokens(self) -> list[Mapping[str, Any]]:
        return self._settings.get("added_tokens") or []


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Keeps back what native code prints when it panics; the caller tells."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


build = HuggingFaceTokenizer
