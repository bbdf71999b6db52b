"""Groups of parameters: who learns how fast, who decays, who is frozen."""

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
import optax

from reslab.core.errors import ReslabError, nearest
from reslab.core.trees import first_match, map_named, named_leaves


@dataclasses.dataclass(frozen=True)
class Group:
    """How the parameters of a group are updated.

    Attributes:
      lr_scale: Factor on the learning rate.
      weight_decay: Weight decay; None is the optimizer's.
      freeze: Whether the parameters stay as they are.
    """

    lr_scale: float = 1.0
    weight_decay: float | None = None
    freeze: bool = False


def parse_groups(
    groups: Sequence[tuple[str, Mapping[str, Any]]],
) -> list[tuple[str, Group]]:
    """Turns `(pattern, {option: value})` pairs of a config into groups.

    Raises:
      ReslabError: On an unknown option or a value of the wrong type.
    """
    parsed = []
    kinds = {"lr_scale": (int, float), "weight_decay": (int, float), "freeze": (bool,)}
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
            if key not in kinds:
                raise ReslabError(
                    f"optim.groups {pattern!r}: unknown option {key!r}",
                    hint=nearest(key, kinds),
                )
            if type(value) not in kinds[key]:
                expected = " or ".join(kind.__name__ for kind in kinds[key])
                raise ReslabError(
                    f"optim.groups {pattern!r}: {key}",
                    expected=expected,
                    got=repr(value),
                )
        parsed.append((pattern, Group(**options)))
    return parsed


def assign(params: Any, groups: Sequence[tuple[str, Group]]) -> dict[str, Group]:
    """Gives every parameter the first group whose pattern is found in its path.

    Raises:
      ReslabError: If a pattern is found in no path.
    """
    return first_match(list(named_leaves(params)), groups, Group())


def grouped(
    make: Callable[..., optax.GradientTransformation],
    params: Any,
    groups: Sequence[tuple[str, Group]],
    *,
    learning_rate: float,
    schedule: optax.Schedule,
    weight_decay: float,
    clip: float = 0.0,
) -> optax.GradientTransformation:
    """Builds one optimizer per distinct group and routes parameters to them.

    Frozen parameters have their gradients zeroed first, so that they do not
    count in the norm that is clipped.

    Args:
      make: Called with `learning_rate` (a schedule) and `weight_decay`.
      params: The parameters, or their shapes.
      groups: Pairs of a pattern and its group; the first match decides.
      learning_rate: Peak learning rate.
      schedule: Factor on it at each step.
      weight_decay: Decay of groups that name none.
      clip: Bound of the global gradient norm; 0 is none.

    Returns:
      The gradient transformation for `params`.
    """
    assigned = assign(params, groups)
    labels = map_named(lambda name, _: repr(assigned[name]), params)
    optimizers: dict[Hashable, optax.GradientTransformation] = {}
    for group in set(assigned.values()):
        peak = learning_rate * group.lr_scale
        decay = weight_decay if group.weight_decay is None else group.weight_decay
        optimizers[repr(group)] = (
            optax.set_to_zero()
            if group.freeze
            else make(
                learning_rate=lambda step, peak=peak: peak * schedule(step),
                weight_decay=decay,
            )
        )
    frozen = map_named(lambda name, _: assigned[name].freeze, params)
    parts: list[optax.GradientTransformation] = []
    if any(jax.tree.leaves(frozen)):
        parts.append(optax.masked(optax.set_to_zero(), frozen))
    if clip:
        parts.append(optax.clip_by_global_norm(clip))
    return optax.chain(*parts, optax.partition(optimizers, labels))
