"""A tokenizer file of the Hugging Face `tokenizers` library."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from reslab.core.errors import ReslabError, missing_extra, nearest


@dataclasses.dataclass
class HuggingFaceTokenizer:
    """Encodes with a `tokenizer.json`.

    Documents are decoded as UTF-8 (undecodable bytes become U+FFFD) and encoded
    without the file's own special tokens: the corpus puts one BOS before each
    document, whatever the model's convention.

    Attributes:
      path: Path of the `tokenizer.json`.
      bos_token: The token that begins a document, as the file writes it, for
        example `"<|endoftext|>"`. None adds one id after the vocabulary.
      bos: The id of that token.
      vocabulary_size: Number of ids, BOS included.

    Raises:
      ReslabError: If the package is missing, the file is not a tokenizer, or
        there is no such token.
    """

    path: str = ""
    bos_token: str | None = None
    bos: int = dataclasses.field(init=False)
    vocabulary_size: int = dataclasses.field(init=False)

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
            text = file.read_text(encoding="utf-8")
            self._settings: Mapping[str, Any] = json.loads(text)
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
        # The library raises bare Exception for a file of another form.
        except Exception as error:
            raise ReslabError(
                "tokenizer huggingface: path",
                expected="a tokenizer.json",
                got=f"{self.path!r} ({(str(error) or '?').splitlines()[0]})",
            ) from None
        self._vocabulary: Mapping[str, int] = self._tokenizer.get_vocab()
        self._size = 1 + max(self._vocabulary.values(), default=-1)
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
        self.vocabulary_size = max(self._size, self.bos + 1)

    def encode(self, document: bytes) -> np.ndarray:
        """Encodes a document to uint32 ids of shape (tokens,), without BOS."""
        text = document.decode("utf-8", errors="replace")
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return np.asarray(ids, np.uint32)

    def decode(self, ids: npt.ArrayLike) -> str:
        """Decodes ids to text; BOS and ids beyond the vocabulary are dropped."""
        ids = np.asarray(ids)
        ids = ids[(ids != self.bos) & (ids >= 0) & (ids < self._size)]
        return self._tokenizer.decode(ids.tolist())

    def byte_lengths(self) -> np.ndarray:
        """How many bytes each id stands for, shape (vocabulary,): 0 for BOS.

        Exact for byte-level files (GPT-2 and its kin). Where a file changes the
        text (lower-casing, joining spaces) the count is of what it keeps.
        """
        byte_level = '"ByteLevel"' in json.dumps(
            [self._settings.get("pre_tokenizer"), self._settings.get("decoder")]
        )
        decoder = self._settings.get("decoder") or {}
        prefix = decoder.get("prefix", "") if decoder.get("type") == "WordPiece" else ""
        lengths = np.zeros(self.vocabulary_size, np.int32)
        for token, index in self._vocabulary.items():
            if byte_level:  # each character of such a token stands for one byte
                lengths[index] = len(token)
            elif len(token) == 6 and token.startswith("<0x") and token[-1] == ">":
                lengths[index] = 1  # byte fallback
            else:
                text = token.removeprefix(prefix).replace("▁", " ")
                lengths[index] = len(text.encode())
        for token in self._added_tokens():
            literal = 0 if token["special"] else len(token["content"].encode())
            lengths[token["id"]] = literal
        lengths[self.bos] = 0
        return lengths

    def _added_tokens(self) -> list[Mapping[str, Any]]:
        return self._settings.get("added_tokens") or []


build = HuggingFaceTokenizer
