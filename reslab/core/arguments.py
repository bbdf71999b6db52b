"""Arguments of public functions, held to their annotations."""

import functools
import inspect
import numbers
import os
import pathlib
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from ml_collections import ConfigDict

from reslab.core.bounds import Bounds
from reslab.core.errors import ReslabError

Function = TypeVar("Function", bound=Callable[..., Any])

# Classes that an annotation accepts, and its name in errors, also of several.
_KINDS: dict[Any, tuple[Any, str, str]] = {
    str: (str, "a text", "texts"),
    int: (numbers.Integral, "a whole number", "whole numbers"),
    float: (numbers.Real, "a number", "numbers"),
    bool: (bool, "True or False", ""),
    pathlib.Path: (str | os.PathLike, "a path", "paths"),
    types.NoneType: (types.NoneType, "None", ""),
    Mapping: (Mapping | ConfigDict, "a mapping", ""),
    Sequence: (Sequence, "a sequence", ""),
}


def checked(function: Function) -> Function:
    """Refuses arguments that are not what a function's annotations say.

    Checked are annotations of plain classes, mappings and sequences, their unions, and
    `Bounds`. A callable or an iterable is checked where it is used.

    >>> @checked
    ... def half(count: int) -> float:
    ...     return count / 2
    >>> half("4")
    Traceback (most recent call last):
    reslab.core.errors.ReslabError: half: count: expected a whole number; got '4'
    """
    signature = inspect.signature(function)
    hints = typing.get_type_hints(function, include_extras=True)

    @functools.wraps(function)
    def call(*arguments: Any, **keywords: Any) -> Any:
        given = signature.bind(*arguments, **keywords).arguments
        for name, value in given.items():
            options, ranges = _read(hints[name])
            where = f"{function.__name__}: {name}"
            if not any(_is_one(value, option) for option in options):
                raise ReslabError(where, expected=_words(options), got=repr(value))
            for one in ranges:
                one.check(where, value)
        return function(*arguments, **keywords)

    return typing.cast(Function, call)


def _read(hint: Any) -> tuple[tuple[Any, ...], list[Bounds]]:
    """The alternatives of an annotation, and its ranges."""
    ranges = [one for one in getattr(hint, "__metadata__", ()) if type(one) is Bounds]
    if ranges:
        hint = typing.get_args(hint)[0]
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,), ranges


def _is_one(value: Any, hint: Any) -> bool:
    kind = typing.get_origin(hint) or hint
    if kind not in _KINDS:
        is_plain = isinstance(kind, type) and kind.__module__ != "collections.abc"
        return not is_plain or isinstance(value, kind)
    if not isinstance(value, _KINDS[kind][0]):
        return False
    parts = typing.get_args(hint)
    if kind is Mapping:
        return _all(value.keys(), parts[0]) and _all(value.values(), parts[1])
    return kind is not Sequence or _all(value, parts[0])


def _all(values: Iterable[Any], hint: Any) -> bool:
    return hint is Any or all(_is_one(value, hint) for value in values)


def _words(options: Iterable[Any]) -> str:
    """The alternatives in words; a text is a path, too."""
    names = []
    for hint in options:
        kind = typing.get_origin(hint) or hint
        name = _KINDS[kind][1] if kind in _KINDS else f"a {kind.__name__}"
        if parts := [_KINDS[one][2] for one in typing.get_args(hint) if one in _KINDS]:
            name += f" of {' to '.join(parts)}"
        names.append(name)
    return " or ".join(n for n in names if n != "a text" or "a path" not in names)
