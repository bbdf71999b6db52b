"""Warnings that are one line, in Python as on the command line."""

import inspect
import warnings


def warn(
    message: str, category: type[Warning] = UserWarning, *, depth: int = 1
) -> None:
    """Warns as `warnings.warn` does, without the line of source below the message.

    Args:
      message: The text, of one line.
      category: Kind of the warning.
      depth: Frames between the caller and the place that the warning is of, which is
        told once by default.
    """
    frame = inspect.currentframe()
    for _ in range(depth + 1):
        frame = frame.f_back if frame else None
    known = frame.f_globals if frame else {}
    warnings.warn_explicit(
        message,
        category,
        # No file: Python would print its line.
        filename=f"<{known.get('__name__', 'reslab')}>",
        lineno=frame.f_lineno if frame else 0,
        registry=known.setdefault("__warningregistry__", {}),
    )
