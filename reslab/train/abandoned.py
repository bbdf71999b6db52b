"""Reads and saves that Orbax leaves unfinished when one of them fails."""

import asyncio
import contextlib
import gc
import logging
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any


class WithoutLateReports:
    """Drops what parts of a save report to its event loop after it has failed.

    They report from threads of C++, at any time, as tracebacks that cannot be caught.
    """

    def __init__(self, hook: Callable[[Any], object]):
        self._hook = hook

    def __call__(self, told: Any) -> None:
        """Passes on what is told, but for the report of a closed loop."""
        if str(told.exc_value) != "Event loop is closed":
            self._hook(told)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps back what is printed when the first failed read abandons the others."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    logger = logging.getLogger("asyncio")
    was_disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        sys.unraisablehook, logger.disabled = hook, was_disabled


# Maximum wait, in seconds.
_SECONDS = 5.0


def await_abandoned_reads() -> None:
    """Waits for the reads that Orbax left running, and takes note of their errors."""
    end = time.monotonic() + _SECONDS
    is_pending = True
    while is_pending and time.monotonic() < end:
        gc.collect()
        is_pending = False
        for thing in gc.get_objects():
            if isinstance(thing, asyncio.Future) and thing.get_loop().is_closed():
                if not thing.done():
                    is_pending = True
                elif not thing.cancelled():
                    thing.exception()  # Python prints errors that are never retrieved.
        time.sleep(0.01)
