"""Syntax trees of Python source, made by one thread at a time."""

import ast
import threading

# CPython 3.11 counts the depth of the trees of all threads in one place, and raises
# SystemError where they differ (python/cpython, issue 106905).
_ALONE = threading.Lock()


def module(source: bytes) -> ast.Module:
    """Parses the source of a module.

    Args:
      source: What its file holds.

    Returns:
      The tree.

    Raises:
      SyntaxError: If it is not Python.
      ValueError: If it has null bytes.
    """
    with _ALONE:
        return ast.parse(source)


def expression(source: str) -> ast.expr:
    """Parses one expression, as `module` parses a module.

    Raises:
      SyntaxError: If it is not one.
      ValueError: If it has null bytes.
      MemoryError: If it is nested too deeply, or RecursionError.
    """
    with _ALONE:
        return ast.parse(source, mode="eval").body
