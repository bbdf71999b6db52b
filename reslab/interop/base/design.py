"""Designs: specs of ours with fields of theirs in them, filled in or matched."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from reslab.core import registry, surroundings
from reslab.core.errors import ReslabError

# Arguments that decide how a model starts or trains, or how its result is rounded or
# computed.
_FREE = """
    rate z_loss jitter chunk inverse kernels
    attention_dropout implementation init_std output_scale inner_scale hidden_scale
    embedding_std is_gain_offset is_rounded_before_gain
"""
FREE = frozenset(_FREE.split())

# Arguments that a spec names even where they have their defaults.
_SIZES = frozenset(("heads", "kv_heads", "head_dim", "hidden", "epsilon", "base"))


class Mismatch(ReslabError):
    """A design that a family of checkpoints cannot express."""


@dataclasses.dataclass(frozen=True)
class Of:
    """A value that a field of a `config.json` gives."""

    field: str


@dataclasses.dataclass(frozen=True)
class Spec:
    """A spec string whose arguments are templates.

    Attributes:
      family: Family of the variant.
      name: Its name.
      arguments: What it is given; other arguments have their defaults.
    """

    family: str
    name: str
    arguments: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Case:
    """One of several templates, by the value of a field.

    Attributes:
      field: The field; of a list, its entry for the layer.
      cases: Template for each value. A design that several fit is of the first.
    """

    field: str
    cases: Mapping[Any, Any]


def fill(template: Any, config: Mapping[str, Any], layer: int = 0) -> Any:
    """Fills a template in.

    Args:
      template: A value, or any of the classes above.
      config: Fields of their config.
      layer: The layer, for fields that are lists.

    Returns:
      A value of ours.

    Raises:
      ReslabError: If a field has a value that no case is for.
    """
    match template:
        case Of(field):
            return config[field]
        case Case(field, cases):
            value = _entry(config[field], layer)
            if value not in cases:
                raise ReslabError(
                    f"config.json: {field} is not supported",
                    expected=" or ".join(map(repr, cases)),
                    got=repr(value),
                )
            return fill(cases[value], config, layer)
        case Spec(family, name, arguments):
            filled = {key: fill(one, config, layer) for key, one in arguments.items()}
            return spec_text(family, name, filled)
    return template


class Matcher:
    """Finds the fields with which templates are given values: the inverse of `fill`.

    Args:
      preferred: Fields of a config whose words are kept where several would fit.

    Attributes:
      found: The fields; those that are by layer as mappings of layers.
    """

    def __init__(self, preferred: Mapping[str, Any] | None = None):
        self._preferred = preferred or {}
        self.found: dict[str, Any] = {}

    def __call__(self, template: Any, value: Any, where: str, layer: int = 0) -> None:
        """Matches one value.

        Args:
          template: Its template.
          value: A value of ours.
          where: What it is, for errors.
          layer: The layer.

        Raises:
          Mismatch: If no fields give the value, beside those that are found already.
        """
        match template:
            case Of(field):
                known = self.found.setdefault(field, value)
                if known != value:
                    raise Mismatch(where, expected=repr(known), got=repr(value))
            case Case(field, cases):
                self._choose(field, cases, value, where, layer)
            case Spec():
                self._match_spec(template, value, where, layer)
            case _ if template != value:
                raise Mismatch(where, expected=repr(template), got=repr(value))

    def _match_spec(self, template: Spec, value: Any, where: str, layer: int) -> None:
        family, name = template.family, template.name
        parsed = registry.parse(value) if value else None
        if parsed is None or parsed.name != name:
            raise Mismatch(where, expected=repr(name), got=repr(value))
        given = all_arguments(family, value)
        wanted = all_arguments(family, name) | dict(template.arguments)
        for key in sorted(wanted.keys() - FREE):
            self(wanted[key], given[key], f"{where}: {key} of {name}", layer)

    def _choose(
        self, field: str, cases: Mapping[Any, Any], value: Any, where: str, layer: int
    ) -> None:
        first = _entry(self._preferred.get(field), layer)
        errors, before = [], self.found
        for key in sorted(cases, key=lambda key: key != first):
            self.found = dict(before)
            try:
                self(cases[key], value, where, layer)
            except Mismatch as error:
                errors.append(error)
                continue
            self.found[field] = {**self.found.get(field, {}), layer: key}
            return
        self.found = before
        # The case that came farthest says what differs.
        raise max(
            errors, key=lambda error: str(error).partition(": expected")[0].count(": ")
        )


def _entry(value: Any, layer: int) -> Any:
    """The value of a layer; of a list that is too short, none."""
    if not isinstance(value, list | tuple):
        return value
    return value[layer] if layer < len(value) else None


def all_arguments(family: str, spec: str) -> dict[str, Any]:
    """The arguments of a spec that it may have, with defaults where it has none."""
    parsed = registry.parse(spec)
    build = registry.module(family, parsed.name).build
    reserved = surroundings.reserved(family)
    defaults = {
        key: one.default
        for key, one in registry.arguments(build).items()
        if key not in reserved
    }
    return defaults | registry.typed_arguments(family, spec)


def spec_text(family: str, name: str, arguments: Mapping[str, Any]) -> str:
    """Writes a spec, without arguments that have their defaults; sizes stay."""
    defaults = all_arguments(family, name)
    given = {
        key: one
        for key, one in arguments.items()
        if key in _SIZES or one != defaults.get(key)
    }
    return registry.spec_text(name, given)


def tiled(values: Sequence[Any]) -> Any:
    """One value of all layers, or the shortest period that repeats."""
    count = len(values)
    for period in range(1, count + 1):
        if all(values[i] == values[i % period] for i in range(count)):
            return values[0] if period == 1 else tuple(values[:period])
    raise AssertionError("unreachable")
