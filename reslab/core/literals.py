"""Python literals as configs hold them: plain, finite, of bounded size."""

import ast
import math
from typing import Any

from reslab.core import syntax

# Longer texts are not written by hand.
LONGEST = 20_000
# Range that JSON, NumPy and checkpoints can hold.
LARGEST = 2**63 - 1
LARGEST_FLOAT = 3.4028234663852886e38  # Largest float32.
DEEPEST = 32


def literal(text: str) -> Any:
    """Evaluates a literal of numbers, strings, booleans, None, and containers of them.

    Args:
      text: Its source.

    Returns:
      The value.

    Raises:
      ValueError: If it is anything else, such as a number of more than 64 bits, an
        infinite one, a set, bytes, or a container nested too deeply.

    >>> literal("(1, 'two', {'three': 3.0})")
    (1, 'two', {'three': 3.0})
    """
    if len(text) > LONGEST:
        raise ValueError(f"a literal of {len(text):,} characters")
    try:
        value = ast.literal_eval(syntax.expression(text.lstrip(" \t")))
    except (SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError("not a literal") from error
    return check_plain(value)


def check_plain(value: Any, depth: int = 0) -> Any:
    """Checks that a value is one that a config can hold.

    Args:
      value: The value.
      depth: Number of containers that it lies in.

    Returns:
      The value.

    Raises:
      ValueError: If it is not.
    """
    if depth > DEEPEST:
        raise ValueError("a value nested too deeply")
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        if abs(value) > LARGEST:
            raise ValueError("a number of more than 64 bits")
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("a number that is not finite")
        if abs(value) > LARGEST_FLOAT:
            raise ValueError("a number beyond those of float32")
        return value
    if isinstance(value, list | tuple):
        for item in value:
            check_plain(item, depth + 1)
        return value
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError("a dictionary whose keys are not strings")
            check_plain(item, depth + 1)
        return value
    raise ValueError(f"a value of type {type(value).__name__}")
