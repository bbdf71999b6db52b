"""Being asked to stop: the signals that mean it, as something to look at."""

import contextlib
import signal
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
    """A flag that is set once a stop was requested.

    Attributes:
      is_set: Whether a signal has come since `listen`.
    """

    def __init__(self) -> None:
        self.is_set = False
        self._previous: dict[signal.Signals, Any] | None = None

    def listen(self) -> None:
        """Takes the signals from now on; again does nothing."""
        if self._previous is not None:
            return
        self._previous = {}
        for number in _SIGNALS:
            if signal.getsignal(number) is signal.SIG_IGN:  # Ignored, as under `nohup`.
                continue
            try:
                self._previous[number] = signal.signal(number, self._ask)
            except ValueError:  # Not in the main thread.
                return

    def close(self) -> None:
        """Gives the signals back."""
        for number, handler in (self._previous or {}).items():
            signal.signal(number, handler)
        self._previous = None

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.is_set and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.is_set = True


@contextlib.contextmanager
def asked_to_stop(*, is_listening: bool = True) -> Iterator[StopRequest]:
    """Turns SIGTERM, SIGHUP and SIGINT into a request, so that work can be saved.

    A second interrupt from the keyboard is not patient: it raises
    KeyboardInterrupt. Outside of the main thread the caller handles signals.

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
