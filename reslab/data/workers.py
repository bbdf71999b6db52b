"""Worker processes of the data: how they begin, and end with the run."""

import contextlib
import multiprocessing
import os
import pathlib
import pickle
import threading
import weakref
from collections.abc import Iterator
from typing import Any

from reslab.core.errors import ReslabError
from reslab.runtime.files import scratch_directory
from reslab.runtime.storage import StorageFailed

_GUARD = 'the script\'s work under `if __name__ == "__main__":`, in a file of its own'


class WorkersFailed(StorageFailed):
    """A data worker died: the machine may have no memory left for it."""


class Handed:
    """Examples that workers read from a file.

    Pickled, it is the file's path. What a process is told at its start travels
    through a pipe: one that dies would leave the other end waiting for ever, as soon
    as the pipe is full.

    Args:
      examples: Random access to examples; pickled once, when a worker starts.
    """

    def __init__(self, examples: Any):
        self._examples = examples
        self._path: pathlib.Path | None = None

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Any:
        return self._examples[index]

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        if self._path is None:
            stack = contextlib.ExitStack()
            folder = stack.enter_context(scratch_directory("reslab.data-"))
            weakref.finalize(self, stack.close)
            path = folder / "examples.pickle"
            with path.open("wb") as file:
                pickle.dump(self._examples, file, pickle.HIGHEST_PROTOCOL)
            self._path = path
        return _taken, (str(self._path),)


def _taken(path: str) -> Any:
    """Reads the examples in a worker, which from then on ends with its parent."""
    if (parent := multiprocessing.parent_process()) is not None:

        def end() -> None:
            parent.join()
            os._exit(0)

        threading.Thread(target=end, daemon=True).start()
    with open(path, "rb") as file:
        return pickle.load(file)


def check_may_start() -> None:
    """Checks that this is no worker that is just starting.

    A worker imports the script that started it. Without a guard the script would
    start workers of its own.

    Raises:
      ReslabError: If it is one.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise ReslabError("data.workers: a worker would start workers", hint=_GUARD)


@contextlib.contextmanager
def apart_from_working_directory() -> Iterator[None]:
    """Keeps workers that start from importing files of the working directory.

    A new process searches it first, until its parent has told it the path.
    """
    with _environment:
        before = os.environ.get("PYTHONSAFEPATH")
        os.environ["PYTHONSAFEPATH"] = "1"
        try:
            yield
        finally:
            if before is None:
                del os.environ["PYTHONSAFEPATH"]
            else:
                os.environ["PYTHONSAFEPATH"] = before


_environment = threading.Lock()


@contextlib.contextmanager
def workers_answer() -> Iterator[None]:
    """Tells in one line that a worker has died.

    Raises:
      WorkersFailed: If one has.
    """
    try:
        yield
    except RuntimeError as error:
        if "terminated unexpectedly" not in str(error):
            raise
        code = str(error).partition("exit code ")[2].partition(".")[0]
        raise WorkersFailed(
            f"a data worker ended unexpectedly (status {code}); try: more memory, "
            f"data.workers=0, or {_GUARD}"
        ) from None
