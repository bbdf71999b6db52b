"""Corpora of a run on many hosts: one of them tokenizes, and all read its tokens."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.data.corpus import Corpus, TokenStream, kept_by
from reslab.data.encoding import SizesById, tokenizer_sha256
from reslab.data.tokenized import RECORD, open_corpus, tokenize
from reslab.parallel.hosts import in_all, is_writer, on_writer
from reslab.runtime.storage import StorageFailed

FOLDER = "corpus"
# Seconds between two signs of life, without a new document before all give up, and
# until a file that one host has written is seen by the others.
PULSE, PATIENCE, VISIBLE = 5.0, 900.0, 90.0


@contextlib.contextmanager
def tokenized_once(directory: pathlib.Path) -> Iterator[None]:
    """Makes the hosts of a run tokenize each corpus once, into the run directory.

    Process 0 does, into `corpus/`; the others wait and read its files, which they
    check against their digests, as they check their tokenizer. A run that resumes
    reads what is there. A process that is alone tokenizes into memory.

    Args:
      directory: The run directory, which all hosts share.
    """
    if jax.process_count() == 1:
        yield
        return
    folder = directory / FOLDER

    def begin() -> None:
        # Documents may have changed since an attempt that did not become a run.
        if not (directory / "config.json").is_file():
            shutil.rmtree(folder, ignore_errors=True)

    on_writer(begin)
    with kept_by(functools.partial(shared, folder)):
        yield


def shared(
    folder: pathlib.Path, source: registry.Spec, tokenizer: registry.Spec
) -> Corpus:
    """Tokenizes a corpus in process 0, and reads it in all; each must call it.

    Args:
      folder: Where each corpus has a folder of its own.
      source: Spec of the family `sources`.
      tokenizer: Spec of the family `tokenizers`.

    Returns:
      The corpus, in memory.

    Raises:
      ReslabError: In every process, if one cannot have it, or process 0 gets no
        further.
      StorageFailed: Likewise, if it cannot be written.
    """
    path = folder / on_writer(lambda: _name(source, tokenizer))
    work = _Tokenizing(path, source, tokenizer)
    began = told = time.monotonic()
    while not (state := on_writer(work.state))["is_done"]:
        if time.monotonic() - told >= 6 * PULSE:
            told = time.monotonic()
            whose = "tokenizing" if is_writer() else "waiting for host 0 to tokenize"
            print(
                f"{whose} {source}: {state['documents']:,} documents, "
                f"{state['bytes']:,} bytes in {told - began:.0f} s",
                file=sys.stderr,
                flush=True,
            )
    found: list[Corpus] = []
    in_all(lambda: found.append(_read(path, tokenizer)))
    return found[0]


def _name(source: registry.Spec, tokenizer: registry.Spec) -> str:
    encoder = registry.make("tokenizers", tokenizer)
    known = [str(source), tokenizer_sha256(encoder, tokenizer)]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]


class _Tokenizing:
    """Tokenizes in a thread of process 0, where a corpus is not there yet."""

    def __init__(
        self, path: pathlib.Path, source: registry.Spec, tokenizer: registry.Spec
    ):
        self._path, self._source, self._tokenizer = path, source, tokenizer
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._error: BaseException | None = None
        self._size, self._moved = (0, 0), time.monotonic()

    def state(self) -> dict[str, Any]:
        """Waits for `PULSE` at most.

        Returns:
          Whether the corpus is there, and how many documents and bytes are.

        Raises:
          ReslabError: If it cannot be made, or no document has come for `PATIENCE`.
        """
        if self._thread.ident is None:
            self._thread.start()
        self._thread.join(PULSE)
        is_done = not self._thread.is_alive()
        if self._error is not None:
            raise self._error
        if not is_done and time.monotonic() - self._moved > PATIENCE:
            raise ReslabError(
                f"source {self._source!r}",
                expected=f"a document within {PATIENCE:.0f} s",
                got=f"none after {self._size[0]:,}",
            )
        documents, size = self._size
        return {"is_done": is_done, "documents": documents, "bytes": size}

    def _work(self) -> None:
        # The folder of all corpora, and the run directory.
        made = [folder for folder in self._path.parents[:2] if not folder.exists()]
        try:
            if not self._is_whole():
                shutil.rmtree(self._path, ignore_errors=True)
                tokenize(self._source, self._tokenizer, self._path, self._tell)
        except BaseException as error:
            for folder in made:
                with contextlib.suppress(OSError):
                    folder.rmdir()
            self._error = error

    def _is_whole(self) -> bool:
        """Returns whether the corpus is there, with its digests."""
        try:
            open_corpus(self._path, self._tokenizer)
        except (ReslabError, OSError):
            return False
        return True

    def _tell(self, documents: int, size: int) -> None:
        self._size, self._moved = (documents, size), time.monotonic()


def _read(path: pathlib.Path, tokenizer: registry.Spec) -> Corpus:
    """Reads a tokenized corpus into memory, with its digests checked.

    Random windows of a file in a mounted bucket would take a request each.
    """
    deadline = time.monotonic() + VISIBLE
    while not (path / RECORD).is_file() and time.monotonic() < deadline:
        # A network file system may remember for a while that there was none.
        with contextlib.suppress(OSError):
            os.listdir(path.parent)
        time.sleep(0.2)
    if not (path / RECORD).is_file():
        raise ReslabError(
            f"{path}",
            expected="the corpus that host 0 has tokenized",
            got=f"nothing on host {jax.process_index()} after {VISIBLE:.0f} s",
            hint="a run directory that all hosts share",
        )
    corpus = open_corpus(path, tokenizer)
    try:
        train, validation = map(_in_memory, (corpus.train, corpus.validation))
    except OSError as error:
        raise StorageFailed(f"{path}: {error.strerror or error}") from None
    return dataclasses.replace(corpus, train=train, validation=validation, stored=())


def _in_memory(stream: TokenStream) -> TokenStream:
    tokens, sizes = np.asarray(stream.tokens), stream.sizes
    if isinstance(sizes, SizesById):
        sizes = sizes.of(tokens)
    elif sizes is not None:
        sizes = np.asarray(sizes)
    return TokenStream(tokens, stream.starts, sizes)
