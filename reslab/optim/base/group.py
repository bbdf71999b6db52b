"""Groups of a config: patterns of parameter paths and their options."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from reslab.core import registry
from reslab.core.bounds import Bounds, NonNegative, bounds_of
from reslab.core.errors import ReslabError, nearest
from reslab.core.schema import GROUP_FAMILIES
from reslab.core.trees import first_match, named_leaves


@dataclasses.dataclass(frozen=True)
class Group:
    """Update rule of a group of parameters.

    Attributes:
      method: Spec of the optimizer; "" means the run's.
      lr: Peak learning rate; None means the run's.
      lr_scale: Factor on the learning rate.
      scaling: Spec of a scaling: a factor by depth and kind; "" disables it.
      schedule: Spec of the schedule; "" means the run's.
      weight_decay: Weight decay; None means the run's.
      clip: Bound of the gradient norm of each parameter in each layer; 0 disables it.
      freeze: Whether the parameters stay as they are.
    """

    method: str = ""
    lr: Annotated[float | None, Bounds(least=0)] = None
    lr_scale: NonNegative = 1.0
    scaling: str = ""
    schedule: str = ""
    weight_decay: Annotated[float | None, Bounds(least=0)] = None
    clip: NonNegative = 0.0
    freeze: bool = False


_KINDS: Mapping[str, tuple[type, ...]] = {
    "method": (str,),
    "lr": (int, float),
    "lr_scale": (int, float),
    "scaling": (str,),
    "schedule": (str,),
    "weight_decay": (int, float),
    "clip": (int, float),
    "freeze": (bool,),
}


def parse_groups(
    groups: Sequence[tuple[str, Mapping[str, Any]]],
) -> list[tuple[str, Group]]:
    """Turns `(pattern, {option: value})` pairs of a config into groups.

    Raises:
      ReslabError: On an unknown option, a value of the wrong type or out of range,
        or a spec that names nothing.
    """
    parsed = []
    ranges = bounds_of(Group)
    for entry in groups:
        if (
            not isinstance(entry, list | tuple)
            or len(entry) != 2
            or not isinstance(entry[0], str)
            or not isinstance(entry[1], Mapping)
        ):
            raise ReslabError(
                "optim.groups",
                expected="pairs (pattern, {option: value})",
                got=repr(entry),
            )
        pattern, options = entry
        for key, value in options.items():
            where = f"optim.groups {pattern!r}"
            if key not in _KINDS:
                raise ReslabError(
                    f"{where}: unknown option {key!r}", hint=nearest(key, _KINDS)
                )
            if type(value) not in _KINDS[key]:
                expected = " or ".join(kind.__name__ for kind in _KINDS[key])
                raise ReslabError(f"{where}: {key}", expected=expected, got=repr(value))
            if key in ranges:
                ranges[key].check(f"{where}: {key}", value)
            if key in GROUP_FAMILIES and value:
                registry.factory(GROUP_FAMILIES[key], value)
        parsed.append((pattern, Group(**options)))
    return parsed


def assign(params: Any, groups: Sequence[tuple[str, Group]]) -> dict[str, Group]:
    """Gives every parameter the first group whose pattern is found in its path.

    Raises:
      ReslabError: If a pattern is found in no path, or two groups that claim a
        parameter name different methods for it. A last pattern for all others
        claims nothing that an earlier one does.
    """
    names = list(named_leaves(params))
    assigned = first_match(names, groups, Group())
    for pattern, group in groups:
        claimed = [name for name in names if re.search(pattern, name)]
        if not group.method or len(claimed) == len(names):
            continue
        for name in claimed:
            chosen = assigned[name].method
            if chosen and chosen != group.method:
                raise ReslabError(
                    f"two groups claim {name}",
                    expected="one method",
                    got=f"{chosen!r}, and {group.method!r} by {pattern!r}",
                    hint="patterns that do not overlap",
                )
    return assigned
