"""Python that a user wrote: whatever it raises is one line."""

import contextlib
import os
import pathlib
import re
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from reslab.core.errors import ReslabError

Answer = TypeVar("Answer")
_PACKAGE = f"{pathlib.Path(__file__).resolve().parent.parent}{os.sep}"


def call(
    what: str,
    path: pathlib.Path | None,
    function: Callable[..., Answer],
    *arguments: Any,
) -> Answer:
    """Calls into a user's file, which may raise anything.

    `sys.exit`, KeyboardInterrupt and their kin end no command when the file raises
    them; an interrupt from the keyboard meanwhile does.

    Args:
      what: What to call the file in errors.
      path: The file, to name the line; None where it is not known yet.
      function: What to call.
      *arguments: Its arguments.

    Returns:
      What it returns.

    Raises:
      ReslabError: If it raises anything.
      KeyboardInterrupt: If the keyboard interrupts it.
    """
    with _noting_interrupts() as interrupts:
        try:
            return function(*arguments)
        except ReslabError:
            raise
        except BaseException as error:
            if interrupts:
                raise
            raise ReslabError(_place(what, path, error), got=_said(error)) from error


def _place(what: str, path: pathlib.Path | None, error: BaseException) -> str:
    """The file, and its line where the error is known to come from."""
    if isinstance(error, SyntaxError) and error.filename:
        places, kind = [(error.filename, error.lineno)], "syntax error in line"
    else:
        frames = traceback.extract_tb(error.__traceback__)
        places, kind = [(f.filename, f.lineno) for f in frames], "line"
    known = [p for p in places if path is None or p[0] == str(path)]
    known = [p for p in known if not p[0].startswith(("<frozen", _PACKAGE))]
    if not known:
        return what
    file, line = known[-1]
    return f"{what}, {kind} {line}" if path else f"{what}, {file}, {kind} {line}"


def _said(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return error.msg
    try:
        message = str(error).strip()
    except Exception:  # The user's own exception may raise here, too.
        message = ""
    # A locked ConfigDict lists all its fields first.
    if unknown := re.search(r'Key "(\w+)" does not exist', message):
        meant = re.search(r'Did you mean "(\w+)"', message)
        hint = f"; did you mean {meant[1]!r}?" if meant else ""
        return f"unknown field {unknown[1]!r}{hint}"
    first = message.splitlines()[0] if message else ""
    return f"{type(error).__name__}: {first}"


@contextlib.contextmanager
def _noting_interrupts() -> Iterator[list[int]]:
    """Notes interrupts from the keyboard, which otherwise do as they did."""
    noted: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or not callable(before):
        yield noted
        return

    def note(number: int, frame: Any) -> None:
        noted.append(number)
        before(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)
