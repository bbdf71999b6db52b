"""JSON files as they may be found: absent, damaged, or of another form."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from reslab.core.errors import ReslabError

# A record is small; a larger file is something else.
LARGEST = 2**28


def parse_record(text: str | bytes, where: str) -> dict[str, Any]:
    """Parses a JSON object.

    Args:
      text: The JSON; bytes are UTF-8.
      where: What to call it in errors.

    Returns:
      The object.

    Raises:
      ReslabError: If it is not UTF-8, not JSON, or not an object.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        found = json.loads(text)
    except UnicodeDecodeError as error:
        raise ReslabError(
            f"{where}: not JSON", expected="UTF-8", got=f"byte {error.start}"
        ) from None
    except RecursionError:
        raise ReslabError(f"{where}: not JSON", got="nested too deeply") from None
    except ValueError as error:
        raise ReslabError(f"{where}: not JSON", got=str(error)) from None
    if not isinstance(found, dict):
        raise ReslabError(where, expected="an object", got=type(found).__name__)
    return found


# Types of the fields of an object, or the forms of those that are objects.
Form = Mapping[str, "type | Form"]
_KINDS = {int: "a whole number", str: "a text", list: "a list"}


def read_record(
    path: str | os.PathLike[str], form: Form | None = None
) -> dict[str, Any]:
    """Reads a JSON object from a file.

    Args:
      path: The file.
      form: The types of fields; one that is absent is right.

    Returns:
      The object.

    Raises:
      ReslabError: If it cannot be read or is of another form.
    """
    path = pathlib.Path(path)
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ReslabError(f"{path}", expected="a record", got=reason) from None
    if len(content) > LARGEST:
        raise ReslabError(f"{path}", expected="a record", got="a file of another kind")
    found = parse_record(content, str(path))
    _check_form(str(path), found, form or {})
    return found


def _check_form(where: str, found: Any, form: Form) -> None:
    if not isinstance(found, dict):
        raise ReslabError(where, expected="an object", got=type(found).__name__)
    for key in form.keys() & found.keys():
        kind, value = form[key], found[key]
        if isinstance(kind, Mapping):
            _check_form(f"{where}: {key}", value, kind)
        elif not isinstance(value, kind):
            raise ReslabError(
                f"{where}: {key}", expected=_KINDS[kind], got=type(value).__name__
            )
