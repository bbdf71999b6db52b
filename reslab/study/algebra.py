"""A small algebra over config fields: what a study compares.

A sweep is a tuple of cases; the functions here make sweeps from values and from
other sweeps, and every sweep can be used where a sweep is taken:

    product(vary("model.placement", "pre", "post"), vary("model.depth", 4, 8))

are four cases, named `placement=pre depth=4` and so on.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

from reslab.core.errors import ReslabError


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing that is compared.

    Attributes:
      name: What the report calls it.
      fields: Fields of the config, by dotted name, that make it what it is.
    """

    name: str
    fields: Mapping[str, Any]


Sweep = tuple[Case, ...]


def case(name: str, fields: Mapping[str, Any] | None = None) -> Sweep:
    """A sweep of one named case; without fields, the base config as it is."""
    return (Case(name, dict(fields or {})),)


def vary(field: str, *values: Any, **named: Any) -> Sweep:
    """One case for every value of a field.

    Args:
      field: Dotted name of the field.
      *values: Its values; a case is called `<last part of the field>=<value>`.
      **named: More values, with the names of their cases.

    >>> [c.name for c in vary("model.norm", "rms", gainless="rms(use_gain=False)")]
    ['norm=rms', 'gainless']
    """
    label = field.rpartition(".")[2]
    unnamed = [Case(f"{label}={_text(value)}", {field: value}) for value in values]
    return *unnamed, *(Case(name, {field: value}) for name, value in named.items())


def _text(value: Any) -> str:
    return (
        "+".join(map(_text, value)) if isinstance(value, list | tuple) else f"{value}"
    )


def product(*sweeps: Sweep) -> Sweep:
    """Combines every case of each sweep with every case of the others.

    Raises:
      ReslabError: If two sweeps set the same field.

    >>> sweep = product(vary("model.depth", 4, 8), vary("model.norm", "rms"))
    >>> [c.name for c in sweep]
    ['depth=4 norm=rms', 'depth=8 norm=rms']
    """
    return tuple(_join(cases) for cases in itertools.product(*sweeps))


def zipped(*sweeps: Sweep) -> Sweep:
    """The first case of each sweep together, the second ones, and so on.

    Raises:
      ReslabError: If the sweeps differ in length or set the same field.

    >>> zipped(vary("model.depth", 4, 8), vary("model.features", 64, 32))[1].name
    'depth=8 features=32'
    """
    lengths = [len(sweep) for sweep in sweeps]
    if len(set(lengths)) > 1:
        raise ReslabError(
            "zipped",
            expected="sweeps of equal length",
            got=", ".join(map(str, lengths)),
        )
    return tuple(_join(cases) for cases in zip(*sweeps, strict=True))


def chain(*sweeps: Sweep) -> Sweep:
    """The cases of the first sweep, then those of the second, and so on."""
    return tuple(itertools.chain(*sweeps))


def _join(cases: tuple[Case, ...]) -> Case:
    fields: dict[str, Any] = {}
    for one in cases:
        if twice := sorted(fields.keys() & one.fields):
            raise ReslabError(f"study: {twice[0]} is set by two of the sweeps joined")
        fields |= one.fields
    return Case(" ".join(one.name for one in cases if one.name), fields)
