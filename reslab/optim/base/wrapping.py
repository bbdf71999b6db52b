"""Optimizers around another: which layers it moves, and how far."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from reslab.core import registry, surroundings
from reslab.core.bounds import bounded
from reslab.core.layout import Layout
from reslab.core.precision import scaled
from reslab.core.trees import map_named, named_leaves
from reslab.optim.base.leaves import Layouts, map_leaves, resolve

Wrap = Callable[..., optax.GradientTransformationExtraArgs]


def wrapper(
    inner: registry.Spec, *, cuts: Callable[..., Any] | None = None
) -> Callable[[Wrap], Wrap]:
    """Makes an optimizer of a function that wraps one.

    The function takes the transformation inside, `layouts`, if it wants the length of
    the run `steps`, and its options. The optimizer takes `learning_rate`,
    `weight_decay`, `layouts`, `inner`, which is the spec of an optimizer, and the
    options, which are checked against their bounds. Around all groups of parameters
    together the function, the optimizer's `wrap`, is called alone.

    Args:
      inner: Default of the spec.
      cuts: Called with the depth, the length of the run and the options, returns the
        depths at which the backward pass may stop; None lets it reach the end.
    """

    def decorate(wrap: Wrap) -> Wrap:
        wrap = bounded(wrap)
        _, *own = inspect.signature(wrap).parameters.values()
        takes_steps = any(one.name == "steps" for one in own)

        @functools.wraps(wrap)
        def build(
            learning_rate: optax.ScalarOrSchedule,
            weight_decay: float = 0.0,
            layouts: Layouts = None,
            inner: registry.Spec = inner,
            *,
            steps: int = 1,
            **options: Any,
        ) -> optax.GradientTransformationExtraArgs:
            made = registry.make(
                "optimizers",
                inner,
                **surroundings.Optimizers(
                    learning_rate=learning_rate,
                    weight_decay=weight_decay,
                    layouts=layouts,
                    steps=steps,
                ),
            )
            if takes_steps:
                options["steps"] = steps
            return wrap(made, layouts=layouts, **options)

        *given, _ = inspect.signature(build, follow_wrapped=False).parameters.values()
        names = {one.name for one in given}
        options = [one for one in own if one.name not in names]
        signature = inspect.signature(wrap).replace(parameters=[*given, *options])
        made: Any = build
        made.__signature__ = signature
        made.__annotations__ = {
            one.name: one.annotation for one in signature.parameters.values()
        }
        made.wrap, made.cuts = wrap, cuts
        return made

    return decorate


def unwrapped(method: registry.Spec) -> tuple[registry.Spec, list[Any]]:
    """Takes the wrappers off a method.

    A wrapper is an optimizer made by `wrapper`. It goes around all groups of
    parameters together.

    Args:
      method: The spec of a method.

    Returns:
      The spec of the innermost method, and functions that wrap a transformation,
      given its `layouts` and `steps`, the innermost first.
    """
    wraps: list[Any] = []
    while (found := _wrapper_of(method)) is not None:
        build, options, method = found
        wraps.insert(0, _with_options(build.wrap, options))
    return method, wraps


def _wrapper_of(method: registry.Spec) -> tuple[Any, dict[str, Any], Any] | None:
    """The wrapper that a spec names, its options and the spec inside; None if none."""
    if not isinstance(method, str):
        return None
    parsed = registry.parse(method)
    build = registry.module("optimizers", parsed.name).build
    if not hasattr(build, "wrap"):
        return None
    # Also checks their names and types.
    options = registry.typed_arguments("optimizers", method)
    default = registry.arguments(build)["inner"].default
    return build, options, options.pop("inner", default)


def _with_options(wrap: Wrap, options: Mapping[str, Any]) -> Any:
    takes_steps = "steps" in inspect.signature(wrap).parameters

    def around(inner: Any, layouts: Layouts, steps: int) -> Any:
        given = {"steps": steps} if takes_steps else {}
        return wrap(inner, layouts=layouts, **given, **options)

    return around


def cuts_of(method: registry.Spec, depth: int, steps: int) -> Any:
    """Returns the depths at which a method stops the backward pass, or None."""
    while (found := _wrapper_of(method)) is not None:
        build, options, method = found
        if build.cuts is not None:
            return build.cuts(depth, steps, **options)
    return None


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
