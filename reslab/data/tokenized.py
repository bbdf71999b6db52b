"""Tokens on disk: a corpus is tokenized once, and may be larger than memory."""

import array
import contextlib
import dataclasses
import json
import os
import pathlib
import weakref
from collections.abc import Callable
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.files import whole_directory
from reslab.data.corpus import Corpus, Documents, TokenStream, token_dtype

RECORD = "corpus.json"
SPLITS = ("train", "validation")
# Tokens are written in pieces of at least this many bytes.
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
    """

    path: str
    dtype: str

    def __post_init__(self) -> None:
        self._handle = os.open(self.path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._handle)
        self._width = np.dtype(self.dtype).itemsize
        self._count = os.fstat(self._handle).st_size // self._width

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


def tokenize(
    source: registry.Spec,
    tokenizer: registry.Spec,
    out: str | os.PathLike[str],
    tell: Callable[[int, int], None] = lambda documents, size: None,
) -> dict[str, Any]:
    """Tokenizes a corpus into a directory, document after document.

    The directory appears whole or not at all. The memory that it takes is that of
    one document, and 8 bytes for every document.

    Args:
      source: Spec of the family `sources`.
      tokenizer: Spec of the family `tokenizers`.
      out: The new directory.
      tell: Is given the documents and bytes so far, after every document.

    Returns:
      The record of the corpus, as in its `corpus.json`.

    Raises:
      ReslabError: If a spec is wrong, a split is empty, or `out` is there.
    """
    encoder = registry.make("tokenizers", tokenizer)
    dtype, documents = token_dtype(encoder), Documents(source)
    with whole_directory(out) as partial:
        with contextlib.ExitStack() as stack:
            writers = {
                name: stack.enter_context(_Writer(partial / f"{name}.tokens", dtype))
                for name in SPLITS
            }
            for split, document in documents:
                ids = encoder.encode(document)
                writers[split].add(np.concatenate([[encoder.bos], ids]))
                tell(sum(len(w.starts) for w in writers.values()), documents.bytes)
        for name, writer in writers.items():
            starts = np.frombuffer(writer.starts, np.int64)
            np.save(partial / f"{name}.starts.npy", starts)
        record = {
            "source": str(source),
            "tokenizer": str(tokenizer),
            "dtype": np.dtype(dtype).name,
            "sha256": documents.sha256,
            "bytes": documents.bytes,
            "documents": sum(len(w.starts) for w in writers.values()),
            "tokens": {name: writer.tokens for name, writer in writers.items()},
        }
        (partial / RECORD).write_text(json.dumps(record, indent=1) + "\n")
    return record


def open_corpus(path: str | os.PathLike[str], tokenizer: registry.Spec) -> Corpus:
    """Opens a tokenized corpus; its tokens stay where they are.

    Args:
      path: A directory that `tokenize` made.
      tokenizer: The tokenizer that is asked for.

    Returns:
      The corpus, which is that of the documents: it has the same digest.

    Raises:
      ReslabError: If there is none, it was tokenized otherwise, or files have
        another size than when they were written.
    """
    folder = pathlib.Path(path).expanduser()
    try:
        record = json.loads((folder / RECORD).read_text())
    except (OSError, json.JSONDecodeError):
        raise ReslabError(
            "source tokens",
            expected="a directory made by `reslab data tokenize`",
            got=repr(str(path)),
        ) from None
    if record["tokenizer"] != str(tokenizer):
        raise ReslabError(
            f"{folder} holds tokens of another tokenizer",
            expected=repr(record["tokenizer"]),
            got=repr(str(tokenizer)),
            hint="data.tokenizer",
        )
    streams = {}
    for name in SPLITS:
        tokens = TokenFile(str(folder / f"{name}.tokens"), record["dtype"])
        if len(tokens) != record["tokens"][name]:
            raise ReslabError(
                f"{folder / name}.tokens",
                expected=f"{record['tokens'][name]} tokens",
                got=str(len(tokens)),
                hint="copy it again",
            )
        starts = np.load(folder / f"{name}.starts.npy", allow_pickle=False)
        streams[name] = TokenStream(tokens, starts)
    return Corpus(
        train=streams["train"],
        validation=streams["validation"],
        tokenizer=registry.make("tokenizers", tokenizer),
        sha256=record["sha256"],
        documents=record["documents"],
        bytes=record["bytes"],
    )


class _Writer:
    """Appends documents to a file of tokens."""

    def __init__(self, path: pathlib.Path, dtype: npt.DTypeLike):
        self._file: BinaryIO = path.open("wb", buffering=BUFFER)
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self.starts = array.array("q")
        self.tokens = 0

    def add(self, ids: np.ndarray) -> None:
        self.starts.append(self.tokens)
        self.tokens += len(ids)
        self._file.write(ids.astype(self._dtype).tobytes())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
