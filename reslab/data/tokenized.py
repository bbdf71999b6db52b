"""Tokens on disk: a corpus is tokenized once, and may be larger than memory."""

import contextlib
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.data.corpus import Corpus, Documents, TokenStream
from reslab.data.encoding import (
    SIZE_DTYPE,
    SizesById,
    Tokenizer,
    Tokens,
    beyond_vocabulary,
    byte_table,
    encoded,
    say_once,
    token_dtype,
    tokenizer_sha256,
)
from reslab.data.token_files import SplitWriter, TokenFile, size_name, token_name
from reslab.data.verification import Stored, content
from reslab.runtime.files import whole_directory
from reslab.runtime.storage import local_path

RECORD = "corpus.json"
SPLITS = ("train", "validation")


def tokenize(
    source: registry.Spec,
    tokenizer: registry.Spec,
    out: str | os.PathLike[str],
    tell: Callable[[int, int], None] = lambda documents, size: None,
) -> dict[str, Any]:
    """Tokenizes a corpus into a directory, document after document.

    The directory appears whole or not at all. It takes the memory of
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
                name: stack.enter_context(
                    SplitWriter(partial, name, dtype, byte_table(encoder))
                )
                for name in SPLITS
            }
            for split, one in encoded(encoder, documents):
                writers[split].add(one)
                tell(sum(len(w.starts) for w in writers.values()), documents.bytes)
            # The splits are alike: both have sizes, or neither.
            has_sizes = any(writer.has_sizes for writer in writers.values())
            if has_sizes:
                for writer in writers.values():
                    writer.keep_sizes()
        files = {}
        for name, writer in writers.items():
            starts = np.frombuffer(writer.starts, np.int64)
            np.save(partial / f"{name}.starts.npy", starts)
            files |= writer.digests
            files[f"{name}.starts.npy"] = content(
                partial / f"{name}.starts.npy", "uint8"
            ).sha256
        record = {
            "source": str(source),
            "tokenizer": str(tokenizer),
            "tokenizer_sha256": tokenizer_sha256(encoder, tokenizer),
            "dtype": np.dtype(dtype).name,
            "has_sizes": has_sizes,
            "sha256": documents.sha256,
            "bytes": documents.bytes,
            "documents": sum(len(w.starts) for w in writers.values()),
            "tokens": {name: writer.tokens for name, writer in writers.items()},
            "files": files,
        }
        (partial / RECORD).write_text(json.dumps(record, indent=1) + "\n")
    return record


def open_corpus(path: str | os.PathLike[str], tokenizer: registry.Spec) -> Corpus:
    """Opens a tokenized corpus; its tokens stay where they are.

    All of its files are read once, to verify them; large ones again only after they
    have changed.

    Args:
      path: A directory that `tokenize` made.
      tokenizer: The tokenizer that is asked for.

    Returns:
      The corpus; its digest equals the one of the documents.

    Raises:
      ReslabError: If it is missing, was tokenized otherwise, or its files have
        changed.
    """
    folder = local_path(path, "source tokens: path")
    record = _record(folder)
    encoder = _make_tokenizer(folder, record, tokenizer)
    written, digest = record.get("files"), hashlib.sha256()
    if written is None:
        say_once(
            f"{folder} was tokenized by an older version, which recorded no digests of "
            "its files: they are not verified; try: tokenize it again"
        )
    streams, stored = {}, []
    for name in SPLITS:
        streams[name] = _open_stream(folder, name, record, byte_table(encoder))
        files = {token_name(name): record["dtype"], _starts(name): "u1"}
        if record.get("has_sizes"):
            files[size_name(name)] = np.dtype(SIZE_DTYPE).name
        for file, dtype in files.items():
            stored.append(found := Stored(folder / file, dtype))
            if written is not None and written[file] != found.sha256:
                raise ReslabError(
                    f"the corpus changed since it was tokenized: {folder / file}",
                    expected=f"sha256 {written[file][:12]}",
                    got=found.sha256[:12],
                    hint="copy or tokenize it again",
                )
            # Sizes follow from documents and tokenizer, which have digests.
            if file != size_name(name):
                digest.update(f"{file} {found.sha256}\n".encode())
            is_tokens = file == token_name(name)
            if is_tokens and found.largest >= encoder.vocabulary_size:
                raise beyond_vocabulary(
                    str(folder / file), found.largest, encoder.vocabulary_size
                )
    if record.get("has_sizes") is None and hasattr(encoder, "encode_sized"):
        _check_older(folder, record["bytes"], streams.values())
    documents = sum(len(stream.starts) for stream in streams.values())
    if record["documents"] != documents:
        raise ReslabError(
            f"{folder / RECORD}: documents",
            expected=f"{documents}, as in its files",
            got=str(record["documents"]),
        )
    return Corpus(
        train=streams["train"],
        validation=streams["validation"],
        tokenizer=encoder,
        sha256=record["sha256"],
        documents=documents,
        bytes=record["bytes"],
        tokens_sha256=digest.hexdigest(),
        stored=tuple(stored),
    )


def _starts(split: str) -> str:
    return f"{split}.starts.npy"


def _files(has_sizes: bool) -> list[str]:
    """Lists the files of a corpus, apart from its record."""
    kinds = [token_name, _starts, *([size_name] if has_sizes else [])]
    return [kind(split) for split in SPLITS for kind in kinds]


def _record(folder: pathlib.Path) -> dict[str, Any]:
    """Reads `corpus.json` and checks its form.

    Raises:
      ReslabError: If it is not what `tokenize` wrote.
    """
    try:
        record = json.loads((folder / RECORD).read_bytes())
    except (OSError, ValueError, RecursionError):
        raise ReslabError(
            "source tokens",
            expected="a directory made by `reslab data tokenize`",
            got=repr(str(folder)),
        ) from None
    if not isinstance(record, dict):
        record = {}

    def is_count(value: Any) -> bool:
        return type(value) is int and value >= 0

    def is_digest(value: Any) -> bool:
        return isinstance(value, str) and len(value) == 64

    tokens, files = record.get("tokens"), record.get("files")
    has_sizes = record.get("has_sizes")
    is_older = files is record.get("tokenizer_sha256") is None
    forms = {
        "tokenizer": isinstance(record.get("tokenizer"), str),
        "dtype": record.get("dtype") in ("uint16", "uint32"),
        "sha256": is_digest(record.get("sha256")),
        "tokenizer_sha256": is_older or is_digest(record.get("tokenizer_sha256")),
        "bytes": is_count(record.get("bytes")),
        "documents": is_count(record.get("documents")),
        "tokens": isinstance(tokens, dict)
        and all(is_count(tokens.get(name)) for name in SPLITS),
        "files": is_older
        or (
            isinstance(files, dict)
            and all(is_digest(files.get(f)) for f in _files(has_sizes is True))
        ),
        "has_sizes": isinstance(has_sizes, bool | None),
    }
    for field, is_right in forms.items():
        if not is_right:
            raise ReslabError(
                f"{folder / RECORD}: {field}",
                expected="what `reslab data tokenize` writes",
                got=repr(record.get(field, "nothing"))[:80],
                hint="tokenize it again",
            )
    return record


def _make_tokenizer(
    folder: pathlib.Path, record: Mapping[str, Any], tokenizer: registry.Spec
) -> Tokenizer:
    """Makes the tokenizer of a corpus, whatever its file is called now.

    Raises:
      ReslabError: If it is another than the corpus was tokenized by.
    """
    wanted, got = record["tokenizer"], str(tokenizer)
    error = functools.partial(
        ReslabError,
        f"{folder} holds tokens of another tokenizer",
        hint="data.tokenizer",
    )
    if registry.parse(wanted).name != registry.parse(got).name:
        raise error(expected=repr(wanted), got=repr(got))
    encoder: Tokenizer = registry.make("tokenizers", tokenizer)
    found = tokenizer_sha256(encoder, tokenizer)
    digest = record.get("tokenizer_sha256")
    if digest is None and wanted != got:  # Older versions recorded only its name.
        raise error(expected=repr(wanted), got=repr(got))
    if digest is not None and digest != found:
        raise error(
            expected=f"{wanted!r} of sha256 {digest[:12]}",
            got=f"{got!r} of {found[:12]}: the tokenizer changed",
        )
    return encoder


def _open_stream(
    folder: pathlib.Path, name: str, record: Mapping[str, Any], table: np.ndarray | None
) -> TokenStream:
    """Opens the files of a split and checks that they fit each other.

    Args:
      folder: The corpus.
      name: The split.
      record: Its record.
      table: Bytes of each id, as `byte_lengths` returns.

    Raises:
      ReslabError: If they do not, or one cannot be read.
    """
    count, path = record["tokens"][name], folder / token_name(name)
    try:
        tokens = TokenFile(str(path), record["dtype"])
        sizes: Tokens | None = None if table is None else SizesById(tokens, table)
        if record.get("has_sizes"):
            path = folder / size_name(name)
            sizes = TokenFile(str(path), np.dtype(SIZE_DTYPE).name)
        path = folder / _starts(name)
        # Memory mapping detects a header that promises more than the file has.
        starts: Any = np.load(path, mmap_mode="r", allow_pickle=False)
    # NumPy raises many types for files that are not its own.
    except (OSError, ValueError, EOFError, TypeError, SyntaxError) as error:
        reason = str(error).splitlines() or [type(error).__name__]
        raise ReslabError(
            f"{path}", expected="a file of `reslab data tokenize`", got=reason[0][:160]
        ) from None
    for file, found in ((token_name(name), tokens), (size_name(name), sizes)):
        if isinstance(found, TokenFile) and found.length != count:
            raise ReslabError(
                f"{folder / file}",
                expected=f"{count} tokens",
                got=f"{found.length:g}",
                hint="copy it again",
            )
    if not isinstance(starts, np.ndarray):  # An archive of several arrays.
        starts.close()
        starts = np.zeros(())
    if starts.ndim != 1 or not len(starts) or starts.dtype.kind not in "iu":
        raise ReslabError(
            f"{path}",
            expected="integers, one for each document",
            got=f"{starts.dtype}{starts.shape}",
        )
    starts = np.array(starts, np.int64)
    if starts[0] != 0 or (np.diff(starts) <= 0).any() or starts[-1] >= count:
        raise ReslabError(
            f"{path}",
            expected=f"ascending places of documents, from 0 to below {count}",
            got=f"{starts[0]} to {starts[-1]}",
        )
    return TokenStream(tokens, starts, sizes)


def _check_older(
    folder: pathlib.Path, size: int, streams: Iterable[TokenStream]
) -> None:
    """Checks that a corpus without recorded sizes needs none.

    Raises:
      ReslabError: If the bytes of its ids do not add up to its documents.
    """
    counted, step = 0, 2**22
    for stream in streams:
        assert stream.sizes is not None
        for begin in range(0, len(stream.tokens), step):
            counted += int(stream.sizes[begin : begin + step].sum(dtype=np.int64))
    if counted != size:
        raise ReslabError(
            f"{folder} was tokenized by an older version, which miscounted its bytes",
            expected=f"{size}",
            got=f"{counted}",
            hint="tokenize it again: its tokens stay the same",
        )
