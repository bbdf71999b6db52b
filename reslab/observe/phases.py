"""Long stages of a command, named as they begin, with the time they took."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator


class Phases:
    """Prints stages on standard error: `compiling ...`, and `compiling: 12.3 s`.

    A stage that is repeated, as evaluation is, is printed the first time only.

    Args:
      is_silent: Whether to print nothing.
      clock: Seconds from any origin.
    """

    def __init__(
        self,
        *,
        is_silent: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._is_silent = is_silent
        self._clock = clock
        self._printed: set[str] = set()

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Prints a stage, and when it has ended its seconds."""
        if self._is_silent or name in self._printed:
            yield
            return
        self._printed.add(name)
        print(f"{name} ...", file=sys.stderr, flush=True)
        begin = self._clock()
        yield
        seconds = self._clock() - begin
        print(f"{name}: {seconds:.1f} s", file=sys.stderr, flush=True)
