"""Arguments that had other names: specs of earlier versions mean what they meant.

    RENAMED = {"iterations": "ns_steps", "b2": "others.b2"}

beside a `build` says that `iterations=5` is now `ns_steps=5`, and that `b2=0.95` is now
written into the spec that the argument `others` holds: `others='adamw(b2=0.95)'`.

    RENAMED = {"routing": {"replace": "attnres", "add": "delta_attnres"}}

says that the argument is now the choice of a variant, by its value.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from reslab.core.errors import ReslabError
from reslab.core.notices import warn


def current(
    family: str,
    variant: str,
    build: Any,
    renamed: Mapping[str, str | Mapping[str, str]],
    arguments: Mapping[str, Any],
) -> tuple[str, dict[str, Any]]:
    """Returns a variant and its arguments under their present names.

    Warns about every old name.

    Args:
      family: Family of the variant, for messages.
      variant: Name of the variant in the spec.
      build: The variant.
      renamed: Old names, each with the present one, or with variants by value.
      arguments: As they are written in a spec.

    Raises:
      ReslabError: If an argument is given by both names, or chooses no variant.
    """
    what, found = f"{family} {variant!r}", dict(arguments)
    for old, new in renamed.items():
        if old not in found:
            continue
        value = found.pop(old)
        if isinstance(new, Mapping):
            if not isinstance(value, str) or value not in new:
                expected = " or ".join(map(repr, new))
                raise ReslabError(f"{what}: {old}", expected=expected, got=repr(value))
            variant = new[value]
            told = f"{what}: {old}={value!r} is now {variant!r}"
            warn(told, FutureWarning, depth=3)
            continue
        name, _, inner = new.partition(".")
        if inner:
            default = inspect.signature(build).parameters[name].default
            spec = found.get(name, default)
            value = _with_argument(spec, inner, value)
        elif name in found:
            raise ReslabError(f"{what}: {name}", expected="one value", got=old)
        found[name] = value
        told = f"{name}={value!r}" if inner else name
        warn(f"{what}: {old!r} is now {told}", FutureWarning, depth=3)
    return variant, found


def _with_argument(spec: str, name: str, value: Any) -> str:
    """A spec with one more argument.

    >>> _with_argument("adamw", "b1", 0.9), _with_argument("adamw(b1=0.9)", "b2", 0.5)
    ('adamw(b1=0.9)', 'adamw(b1=0.9, b2=0.5)')
    """
    head, parenthesis, rest = spec.rstrip().partition("(")
    inside = rest.rpartition(")")[0].strip() if parenthesis else ""
    return f"{head}({inside}{', ' if inside else ''}{name}={value!r})"
