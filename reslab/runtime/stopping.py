"""Being asked to stop: the signals that mean it, as something to look at."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

# Closing the terminal also requests a stop.
_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGHUP")
    if hasattr(signal, name)
)


class StopRequest:
    """A flag that is set once a stop was requested."""

    # The one that the main thread listens with: only there do signals arrive.
    _of_main: "StopRequest | None" = None

    def __init__(self) -> None:
        self._has_come = False
        self._previous: dict[signal.Signals, Any] | None = None

    @property
    def is_set(self) -> bool:
        """Returns whether a signal has come since `listen`, or the main thread's."""
        if threading.current_thread() is threading.main_thread():
            return self._has_come
        return StopRequest._of_main is not None and StopRequest._of_main._has_come

    def listen(self) -> None:
        """Takes the signals from now on; again does nothing."""
        if self._previous is not None:
            return
        self._previous = {}
        if threading.current_thread() is not threading.main_thread():
            return
        StopRequest._of_main = self
        for number in _SIGNALS:
            if signal.getsignal(number) is signal.SIG_IGN:  # Ignored, as under `nohup`.
                continue
            self._previous[number] = signal.signal(number, self._ask)

    def close(self) -> None:
        """Gives the signals back."""
        for number, handler in (self._previous or {}).items():
            signal.signal(number, handler)
        if StopRequest._of_main is self:
            StopRequest._of_main = None
        self._previous = None

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._has_come and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._has_come = True


@contextlib.contextmanager
def asked_to_stop(*, is_listening: bool = True) -> Iterator[StopRequest]:
    """Turns SIGTERM, SIGHUP and SIGINT into a request, so that work can be saved.

    A second interrupt from the keyboard is not patient: it raises
    KeyboardInterrupt. Other threads see the request of the main thread.

    Args:
      is_listening: Whether to begin at once. Until `listen`, a signal ends the
        process, which is right where nothing could be saved and Python may not
        come to handle it for minutes, as while a program is compiled.
    """
    request = StopRequest()
    if is_listening:
        request.listen()
    try:
        yield request
    finally:
        request.close()


@contextlib.contextmanager
def ended_as_interrupted() -> Iterator[None]:
    """Lets SIGTERM and SIGHUP end a block as an interrupt does, so that it cleans up.

    Nothing changes in other threads, and where a signal is handled or ignored already.

    Raises:
      KeyboardInterrupt: When such a signal comes.
    """
    taken = []
    if threading.current_thread() is threading.main_thread():
        taken = [one for one in _SIGNALS if signal.getsignal(one) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in taken:
            # A handler that was set inside stays.
            if signal.getsignal(number) is signal.default_int_handler:
                signal.signal(number, signal.SIG_DFL)
