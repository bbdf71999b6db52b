"""Fields in which configs differ, and names made of them."""

from collections.abc import Mapping, Sequence
from typing import Any


def differing_fields(fields: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of the fields that do not have the same value everywhere.

    >>> differing_fields([{"a": 1, "b": 2}, {"a": 1, "b": 3}])
    ['b']
    """
    names = sorted({key for one in fields for key in one})
    return [
        key for key in names if len({repr(one.get(key, "-")) for one in fields}) > 1
    ]


def short_names(names: Sequence[str]) -> dict[str, str]:
    """The last part of each dotted name, or all of it where that is not unique.

    >>> short_names(["model.norm", "optim.name", "eval.name"])
    {'model.norm': 'norm', 'optim.name': 'optim.name', 'eval.name': 'eval.name'}
    """
    lasts = [name.rpartition(".")[2] for name in names]
    return {
        name: last if lasts.count(last) == 1 else name
        for name, last in zip(names, lasts, strict=True)
    }


def case_name(config: Mapping[str, Any], differing: Sequence[str]) -> str:
    """Names a case by its values of the fields in which configs differ."""
    short = short_names(differing)
    return " ".join(f"{short[key]}={config[key]}" for key in differing) or "run"
