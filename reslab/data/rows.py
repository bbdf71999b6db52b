"""Rows of tables as documents."""

from typing import Any

from reslab.core.errors import ReslabError


def text_bytes(value: Any, where: str) -> bytes:
    """Returns the text of a row as UTF-8; errors do not show it.

    Args:
      value: Text, or bytes.
      where: The row's column, for errors.

    Raises:
      ReslabError: If it is neither.
    """
    got = "nothing" if value is None else type(value).__name__
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError:
            got = "half of a surrogate pair"
    raise ReslabError(where, expected="text in every row", got=got)
