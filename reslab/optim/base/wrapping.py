"""Optimizers around another: which layers it moves, and how far."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from reslab.core import registry
from reslab.core.layout import Layout
from reslab.core.precision import scaled
from reslab.core.trees import map_named, named_leaves
from reslab.optim.base.leaves import Layouts, map_leaves, resolve

Wrap = Callable[..., optax.GradientTransformationExtraArgs]


def unwrapped(method: registry.Spec) -> tuple[registry.Spec, list[Any]]:
    """Takes the wrappers off a method.

    A wrapper is a method whose module has `wrap(inner, *, layouts, steps, **options)`;
    its argument `inner` is the spec of the method inside. It goes around all groups
    of parameters together.

    Args:
      method: The spec of a method.

    Returns:
      The spec of the innermost method, and functions that wrap a transformation,
      given its `layouts` and `steps`, the innermost first.
    """
    wraps: list[Any] = []
    while isinstance(method, str):
        registry.factory("optimizers", method)  # Checks names and types of arguments.
        parsed = registry.parse(method)
        module = registry.module("optimizers", parsed.name)
        if not hasattr(module, "wrap"):
            break
        options = dict(parsed.arguments)
        inner = registry.arguments(module.build)["inner"].default
        method = options.pop("inner", inner)
        wraps.insert(0, _with_options(module.wrap, options))
    return method, wraps


def _with_options(wrap: Wrap, options: Mapping[str, Any]) -> Any:
    return lambda inner, layouts, steps: wrap(
        inner, layouts=layouts, steps=steps, **options
    )


def cuts_of(method: registry.Spec, depth: int, steps: int) -> Any:
    """Returns the depths at which a method stops the backward pass, or None.

    A wrapper that does has `cuts(depth, steps, **options)`.
    """
    while isinstance(method, str):
        parsed = registry.parse(method)
        module = registry.module("optimizers", parsed.name)
        if not hasattr(module, "wrap"):
            return None
        options = dict(parsed.arguments)
        default = registry.arguments(module.build)["inner"].default
        method = options.pop("inner", default)
        if hasattr(module, "cuts"):
            return module.cuts(depth, steps, **options)
    return None


def inside(
    inner: registry.Spec,
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: float,
    layouts: Layouts,
    steps: int,
) -> optax.GradientTransformationExtraArgs:
    """The optimizer that a wrapper goes around, where it stands alone."""
    return optax.with_extra_args_support(
        registry.make(
            "optimizers",
            inner,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            layouts=layouts,
            steps=steps,
        )
    )


def depth_of(layouts: Layouts) -> int:
    """The number of layers that the parameters lie in."""
    return 1 + max(
        (max(one.layers) for one in jax.tree.leaves(layouts) if one.layers), default=-1
    )


def only_active(
    active: Any,
    layouts: Layouts,
    new: Any,
    old: Any,
    *,
    params: Any,
    bottom: Any = None,
) -> Any:
    """Takes the slices of active layers from one tree, all others from another.

    Args:
      active: Which layers are active (layers,).
      layouts: A tree of layouts like the parameters.
      new: A tree that holds trees like the parameters: updates, or a state.
      old: The same, before.
      params: The parameters.
      bottom: A tree that says which parameters lie below the first layer and are
        active only where all layers are; None means no such leaf.

    Returns:
      The mixture; leaves outside of layers come from `new`.
    """
    known = named_leaves(resolve(layouts, params))
    lowest = {} if bottom is None else named_leaves(bottom)
    names = sorted(named_leaves(params), key=len, reverse=True)

    def one(name, x, before):
        owner = next((n for n in names if f"/{name}".endswith(f"/{n}")), None)
        if owner is not None and lowest.get(owner):
            return jnp.where(jnp.all(active), x, before)
        layout = known[owner] if owner is not None else Layout()
        if not layout.layers or not x.ndim or x.shape[0] % len(layout.layers):
            return x
        chosen = active[np.asarray(layout.layers)]
        chosen = jnp.repeat(chosen, x.shape[0] // len(layout.layers))
        return jnp.where(chosen.reshape(-1, *(1,) * (x.ndim - 1)), x, before)

    before = named_leaves(old)
    return map_named(lambda name, x: one(name, x, before[name]), new)


def update_active(
    inner: optax.GradientTransformationExtraArgs,
    active: Any,
    layouts: Layouts,
    updates: Any,
    state: Any,
    params: Any,
    *,
    bottom: Any = None,
    **extra: Any,
) -> tuple[Any, Any]:
    """One update in which the layers that are not active keep weights and state.

    See `only_active` for the arguments.
    """
    moves, new_state = inner.update(updates, state, params, **extra)
    rest = jax.tree.map(jnp.zeros_like, moves)
    return (
        only_active(active, layouts, moves, rest, params=params, bottom=bottom),
        only_active(active, layouts, new_state, state, params=params, bottom=bottom),
    )


def scale_slices(values: Any, layouts: Layouts, updates: Any) -> Any:
    """Multiplies updates by factors that keep the axes of their leaves."""
    return map_leaves(lambda _, u, factor: scaled(u, factor), layouts, updates, values)
