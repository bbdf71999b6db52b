"""Standard streams that outlive their reader: a closed pipe does not end the run."""

import contextlib
import errno
import io
import os
import select
import sys
from collections.abc import Iterator
from typing import Any, TextIO

# The reader or the terminal is gone; other errors are the machine's.
_GONE = (errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO)


# Seconds for which a reader of standard error, such as a pager, may hold up the work.
PATIENCE = 10.0


class _Output(io.FileIO):
    """A file descriptor that takes everything, and remembers why it could not.

    Args:
      number: The descriptor; it may be one that does not block.
      patience: Seconds to wait for a reader that does not read, before what is written
        is dropped until it does; None waits.

    Attributes:
      failure: The first error that was not a reader that left, or None.
    """

    failure: OSError | None = None
    _is_deaf = False

    def __init__(self, number: int, patience: float | None):
        super().__init__(number, "w", closefd=False)
        self._patience, self._is_stalled = patience, False

    def write(self, data: Any, /) -> int:
        """Writes, or drops `data` from the first error on."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest and not self._is_deaf and self._is_taken():
                rest = rest[super().write(rest[: select.PIPE_BUF]) or 0 :]
        except OSError as error:
            self._is_deaf = True
            if error.errno not in _GONE:
                self.failure = OSError(error.errno, error.strerror, "standard output")
        return size

    def _is_taken(self) -> bool:
        """Waits until the reader takes more; False if it does not."""
        patience = 0.0 if self._is_stalled else self._patience
        self._is_stalled = not select.select([], [self], [], patience)[1]
        return not self._is_stalled


def outlive_readers() -> None:
    """Replaces standard output and error by streams that never end the work.

    A reader that left or does not read, a terminal that was closed or a character that
    the encoding lacks is no reason to stop. A stream that was closed from the start is
    `os.devnull`; its number is taken, so that no file of a run gets it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            _take(number)
    sys.stdout = _replacement(sys.stdout, 1)
    sys.stderr = _replacement(sys.stderr, 2)


def _take(number: int) -> None:
    opened = os.open(os.devnull, os.O_RDWR)
    if opened != number:
        os.dup2(opened, number)
        os.close(opened)


def _replacement(stream: TextIO | None, number: int) -> TextIO:
    raw = _Output(number, PATIENCE if number == 2 else None)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding if stream else "utf-8",
        errors="backslashreplace",
        # Like Python: line-buffered for a terminal, block-buffered for a file.
        line_buffering=number == 2 or raw.isatty(),
    )


def write_failure() -> OSError | None:
    """Flushes standard output; the error, such as a full disk, that lost some of it."""
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw.failure if isinstance(raw, _Output) else None


class Telling:
    """A stream whose failure is silence: its reader may leave, its terminal close.

    Args:
      stream: The stream, which has all other properties.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes a text, or drops it."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Passes on what has been written."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def isatty(self) -> bool:
        """Returns whether it is a terminal that is open."""
        try:
            return self._stream.isatty()
        except (OSError, ValueError):
            return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def readers_may_leave() -> Iterator[None]:
    """Makes standard error of this block a stream that never ends the work.

    For programs that call reslab without `outlive_readers`.
    """
    with contextlib.ExitStack() as stack:
        stream = sys.stderr
        if stream is None:  # It was closed from the start.
            stream = stack.enter_context(open(os.devnull, "w"))
        stack.enter_context(contextlib.redirect_stderr(Telling(stream)))
        yield
