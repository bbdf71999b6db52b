"""Fields of a config: a default and, beside it, what the field takes."""

import dataclasses
from typing import Any

from reslab.core import registry
from reslab.core.bounds import Bounds

# Marks fields that every version has had.
ALWAYS: Any = object()
# Families of the variants that options of a parameter group name.
GROUP_FAMILIES = {
    "method": "optimizers",
    "scaling": "scalings",
    "schedule": "schedules",
}


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of the schema.

    Attributes:
      default: Its value where a config sets none.
      family: Family of the variants that it names; "" for plain values.
      is_tiled: Whether it also takes a tuple of specs, repeated over depth.
      choices: The texts that it takes; () is any.
      bounds: Range of its numbers; None is any.
      since: The value for configs of versions that did not have the field.
      was: Its earlier name; "" if it always had this one.
      may_change: Whether a run may go on with another value: it computes the same.
    """

    default: Any
    family: str = ""
    is_tiled: bool = False
    choices: tuple[str, ...] = ()
    bounds: Bounds | None = None
    since: Any = ALWAYS
    was: str = ""
    may_change: bool = False


def spec(
    default: Any, family: str, *, is_tiled: bool = False, since: Any = ALWAYS
) -> Any:
    """A field that names variants of a family."""
    return Field(default, family, is_tiled, since=since)


def changeable(field: Any) -> Any:
    """A field that may change while a run is under way; its default, or a field."""
    made = field if isinstance(field, Field) else Field(field)
    return dataclasses.replace(made, may_change=True)


def choice(default: str, *others: str, since: Any = ALWAYS, was: str = "") -> Any:
    """A field that takes a few words."""
    return Field(default, choices=(default, *others), since=since, was=was)


def number(
    default: float,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    since: Any = ALWAYS,
) -> Any:
    """A field that takes numbers within bounds."""
    bounds = Bounds(least=least, above=above, most=most, below=below)
    return Field(default, bounds=bounds, since=since)


def parts(default: int, *, since: Any = ALWAYS) -> Any:
    """A field that takes the size of an axis of the mesh."""
    words = "at least 1, or -1 for the devices that are left"
    bounds = Bounds(least=1, also=-1, words=words)
    return changeable(Field(default, bounds=bounds, since=since))


def plain(default: Any, *, since: Any = ALWAYS) -> Any:
    """A field that takes any value of its default's type."""
    return Field(default, since=since)


def source_family(model: str, task: str) -> str:
    """The family of `data.source`, which the task decides.

    Args:
      model: Spec of the model.
      task: Spec of the task; "auto" is the model's.

    Returns:
      "sources" (documents), "images", "series" or "problems".
    """
    name = registry.parse(task).name
    if name == "auto":
        build = registry.module("models", registry.parse(model).name).build
        name = getattr(build, "task", "language")
    return getattr(registry.module("tasks", name).build, "source_family", "sources")
