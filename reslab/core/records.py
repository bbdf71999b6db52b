"""JSON files as they may be found: absent, damaged, or of another form."""

import contextlib
import hashlib
import json
import os
import pathlib
import types
from collections.abc import Mapping
from typing import Any

from reslab.core.errors import ReslabError

# Records are small; a larger file is not one.
LARGEST = 2**28
# Beyond float32, and far enough from the end of float64 for sums and products.
_LARGEST_NUMBER = 1e40


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


# A type; None; a list of one form; an object with forms by field, or one form for all
# fields under `...`; or a tuple of alternatives; errors name the last.
Form = (
    type
    | None
    | list["Form"]
    | Mapping[str | types.EllipsisType, "Form"]
    | tuple["Form", ...]
)
_KINDS = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    None: "null",
}


def read_record(
    path: str | os.PathLike[str], form: Form | None = None
) -> dict[str, Any]:
    """Reads a JSON object from a file.

    Args:
      path: The file.
      form: The form of the fields; one that is absent is right.

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
    check_form(found, {} if form is None else form, str(path))
    return found


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a record with its own digest, as `seal`.

    >>> sealed({"a": 1})["seal"][:12]
    'f9d86028c6e0'
    """
    text = json.dumps(record, sort_keys=True)
    return {**record, "seal": hashlib.sha256(text.encode()).hexdigest()}


def check_seal(record: Mapping[str, Any], where: str, hint: str) -> None:
    """Checks a record against its seal; those of older versions have none.

    Args:
      record: The record.
      where: What to call it in errors.
      hint: What to try.

    Raises:
      ReslabError: If it was changed.
    """
    content = {key: value for key, value in record.items() if key != "seal"}
    if "seal" in record and sealed(content) != record:
        raise ReslabError(f"{where} was changed since it was written", hint=hint)


def check_form(found: Any, form: Form, where: str) -> None:
    """Checks what was read from JSON; numbers are finite, and at most 1e40.

    Args:
      found: The value.
      form: What it must be.
      where: What to call it in errors.

    Raises:
      ReslabError: If it is of another form.
    """
    if isinstance(form, tuple):
        # A report checks a million numbers: no error is made to be dropped.
        for one in form:
            is_plain = one is None or isinstance(one, type)
            if is_plain and _is_one(found, one):
                return None
        for one in form[:-1]:
            with contextlib.suppress(ReslabError):
                return check_form(found, one, where)
        return check_form(found, form[-1], where)
    if isinstance(form, Mapping):
        if not isinstance(found, dict):
            raise ReslabError(where, expected="an object", got=type(found).__name__)
        for key, value in found.items():
            if key in form or ... in form:
                check_form(value, form.get(key, form.get(...)), f"{where}: {key}")
    elif isinstance(form, list):
        if not isinstance(found, list):
            raise ReslabError(where, expected="a list", got=type(found).__name__)
        for index, value in enumerate(found):
            check_form(value, form[0], f"{where}[{index}]")
    elif not _is_one(found, form):
        expected, got = _KINDS[form], type(found).__name__
        if form in (int, float):
            expected += f" of at most {_LARGEST_NUMBER:g}"
            got = str(found) if type(found) in (int, float) else got
        raise ReslabError(where, expected=expected, got=got)
    return None


def _is_one(found: Any, form: type | None) -> bool:
    if form in (int, float):
        kinds = (int,) if form is int else (int, float)
        # Compared without conversion: an integer may exceed float64.
        return type(found) in kinds and abs(found) <= _LARGEST_NUMBER
    return found is None if form is None else isinstance(found, form)
