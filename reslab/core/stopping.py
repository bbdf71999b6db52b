"""Being asked to stop: the signals that mean it, as something to look at."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class StopRequest:
    """Whether someone has asked to stop."""

    is_set = False


@contextlib.contextmanager
def asked_to_stop() -> Iterator[StopRequest]:
    """Turns SIGTERM and SIGINT into a request, so that work can be saved.

    A second interrupt from the keyboard is not patient: it raises
    KeyboardInterrupt. Outside of the main thread the caller handles signals.
    """
    request = StopRequest()

    def ask(number: int, frame: FrameType | None) -> None:
        if request.is_set and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.is_set = True

    try:
        previous = {s: signal.signal(s, ask) for s in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # Not the main thread.
        yield request
        return
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
