"""Ends a process that has stalled, which the other processes of a run cannot see."""

import contextlib
import faulthandler
import statistics
from collections import deque
from collections.abc import Iterator

# The file itself: Python's own object may be closed, or replaced by an in-memory one.
STDERR = 2
# Compiling, restoring, evaluating and saving may take this many times longer.
PATIENCE = 6.0
# A step may take this many times the median.
SLOWEST = 20.0


class Watchdog:
    """Ends the process, with the stacks of its threads, unless it is fed in time.

    A thread of C waits, so it also ends a process that holds Python's
    lock. The exit code is 1.

        limit = max(least, 20 * median seconds of a step)

    Args:
      least: Seconds that are always waited; 0 never ends anything.
    """

    def __init__(self, least: float):
        self._least = least
        self._steps: deque[float] = deque(maxlen=64)

    def feed(self, step_seconds: float | None = None) -> None:
        """Restarts the wait.

        Args:
          step_seconds: How long a step takes; None before a first step and other
            work of unknown length, for which `PATIENCE` limits are waited.
        """
        if not self._least:
            return
        if step_seconds is not None:
            self._steps.append(step_seconds)
        median = statistics.median(self._steps) if self._steps else 0.0
        limit = max(self._least, SLOWEST * median)
        if step_seconds is None:
            limit *= PATIENCE
        faulthandler.dump_traceback_later(limit, exit=True, file=STDERR)

    def stop(self) -> None:
        """Waits no longer."""
        if self._least:
            faulthandler.cancel_dump_traceback_later()


@contextlib.contextmanager
def watching(least: float) -> Iterator[Watchdog]:
    """A watchdog for the length of a block."""
    watchdog = Watchdog(least)
    watchdog.feed()
    try:
        yield watchdog
    finally:
        watchdog.stop()
