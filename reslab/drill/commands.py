"""Command lines, run in this process."""

import contextlib
import io
from collections.abc import Callable, Sequence

# Runs a command line, without the program's name, and returns its exit code.
Program = Callable[[Sequence[str]], int]


def answer(
    program: Program, command: Sequence[str]
) -> tuple[int | str | None, list[str], list[str]]:
    """Runs a command.

    Returns:
      Its exit code, and its lines on standard output and on standard error.
    """
    out, errors = io.StringIO(), io.StringIO()
    code: int | str | None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            code = program(command)
        except SystemExit as stop:
            code = stop.code
    return code, out.getvalue().splitlines(), errors.getvalue().splitlines()
