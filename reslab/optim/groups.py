"""Parameter groups: optimizer, learning rate, weight decay and freezing per group."""

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from reslab.core import registry, surroundings
from reslab.core.errors import ReslabError
from reslab.core.layout import Layout
from reslab.core.precision import scaled
from reslab.core.trees import map_named, named_leaves
from reslab.optim.base.group import Group, assign
from reslab.optim.base.leaves import Layouts, map_leaves, resolve
from reslab.optim.base.scale import Rule, Scale
from reslab.optim.base.widened import widened
from reslab.optim.base.wrapping import unwrapped
from reslab.optim.clipping import clip_by_layer_norm


@dataclasses.dataclass(frozen=True)
class Plan:
    """Resolved update rule of one parameter, with all options and scalings.

    Attributes:
      method: Spec of its optimizer, or the optimizer's `build`.
      lr: Peak learning rate.
      schedule: Spec of its schedule; "" means the run's.
      weight_decay: Weight decay.
      epsilon_scale: Factor on Adam's epsilon.
      clip: Bound of the gradient norm of each layer; 0 disables it.
      freeze: Whether it stays as it is.
      factor: Factor on the learning rate, as in `Scale.lr`; not part of equality.
    """

    method: registry.Spec
    lr: float
    schedule: str
    weight_decay: float
    epsilon_scale: float
    clip: float
    freeze: bool
    factor: Any = dataclasses.field(default=1.0, compare=False, repr=False)


def plans(
    method: registry.Spec,
    params: Any,
    groups: Sequence[tuple[str, Group]],
    *,
    learning_rate: float,
    weight_decay: float,
    layouts: Layouts = None,
) -> dict[str, Plan]:
    """Resolves the update rule of every parameter.

    Args:
      method: The optimizer of groups that name none.
      params: The parameters, or their shapes.
      groups: Pairs of a pattern and its group; the first match decides.
      learning_rate: Peak learning rate of groups that name none.
      weight_decay: Decay of groups that name none.
      layouts: A tree of layouts like the parameters; None reads their shapes.

    Returns:
      A plan for the path of every parameter.

    Raises:
      ReslabError: As `assign`, or if a scaling does not go with a method.
    """
    assigned = assign(params, groups)
    method, _ = unwrapped(method)
    found = named_leaves(resolve(layouts, params))
    depth = 1 + max(
        (max(one.layers) for one in found.values() if one.layers), default=-1
    )
    rules: dict[str, Rule] = {}
    result = {}
    for name, group in assigned.items():
        chosen = group.method or method
        scale = Scale()
        if group.scaling:
            if group.scaling not in rules:
                rules[group.scaling] = registry.make("scalings", group.scaling)
            scale = rules[group.scaling](name, found[name], depth)
        is_known = registry.accepts("optimizers", chosen, "epsilon_scale")
        if scale.epsilon != 1 and not is_known and not group.freeze:
            raise ReslabError(
                f"scaling {group.scaling!r}",
                expected="a method with an epsilon of Adam's",
                got=repr(chosen),
                hint="a group without the scaling for the other parameters",
            )
        decay = weight_decay if group.weight_decay is None else group.weight_decay
        peak = learning_rate if group.lr is None else group.lr
        is_still = not callable(scale.lr) and not np.any(scale.lr)
        result[name] = Plan(
            method=chosen,
            lr=peak * group.lr_scale,
            schedule=group.schedule,
            weight_decay=decay * scale.weight_decay,
            epsilon_scale=scale.epsilon,
            clip=group.clip,
            freeze=group.freeze or is_still,
            factor=scale.lr,
        )
    return result


def grouped(
    method: registry.Spec,
    params: Any,
    groups: Sequence[tuple[str, Group]],
    *,
    learning_rate: float,
    schedule: optax.Schedule,
    weight_decay: float,
    clip: float = 0.0,
    layouts: Layouts = None,
    steps: int = 1,
) -> optax.GradientTransformationExtraArgs:
    """Builds one optimizer per distinct plan and routes parameters to them.

    Frozen parameters, and frozen slices of stacked ones, have their gradients
    zeroed first, so that they do not count in the norm that is clipped. Then come
    the global clip, the clips per layer, the methods, and the factors of the scalings.
    A wrapper, such as `lisa`, wraps all of these, and its inner method serves groups
    without a method. Everything is computed in float32 at least.

    Args:
      method: The optimizer of groups without one. Optimizers are called with
        `learning_rate` (a schedule), `weight_decay`, and what else they take of
        `layouts` and `epsilon_scale`.
      params: The parameters, or their shapes.
      groups: Pairs of a pattern and its group; the first match decides.
      learning_rate: Peak learning rate.
      schedule: Factor on it at each step.
      weight_decay: Decay of groups that name none.
      clip: Bound of the global gradient norm; 0 disables it.
      layouts: A tree of layouts like the parameters; None reads their shapes.
      steps: Length of the run, for the schedules of groups.

    Returns:
      The gradient transformation for `params`.
    """
    layouts = resolve(layouts, params)
    method, wraps = unwrapped(method)
    planned = plans(
        method,
        params,
        groups,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        layouts=layouts,
    )
    # Parameters with equal plans share an optimizer.
    distinct: dict[Plan, str] = {}
    for plan in planned.values():
        if not plan.freeze:
            distinct.setdefault(plan, f"group_{len(distinct)}")
    labels = map_named(lambda name, _: distinct.get(planned[name], "frozen"), params)
    optimizers: dict[Hashable, optax.GradientTransformation] = {
        label: _optimizer(plan, schedule, layouts, steps)
        for plan, label in distinct.items()
    }
    kept = map_named(lambda name, _: _kept(planned[name]), params)
    clips = map_named(lambda name, _: planned[name].clip, params)
    factors = map_named(lambda name, _: planned[name].factor, params)
    parts: list[optax.GradientTransformation] = []
    if not all(np.all(mask) for mask in jax.tree.leaves(kept)):
        parts.append(_zero_frozen(kept, layouts))
    if clip:
        parts.append(optax.clip_by_global_norm(clip))
    if any(jax.tree.leaves(clips)):
        parts.append(clip_by_layer_norm(clips, layouts))
    parts.append(optax.partition(optimizers | _FROZEN, labels))
    if any(callable(f) or np.any(np.asarray(f) != 1) for f in jax.tree.leaves(factors)):
        parts.append(scale_by_factors(factors, layouts))
    transformation = optax.chain(*parts)
    for wrap in wraps:
        transformation = wrap(transformation, layouts, steps)
    if any(plan.freeze for plan in planned.values()):
        # Wrappers keep no state of frozen parameters either.
        is_frozen = map_named(
            lambda name, _: "frozen" if planned[name].freeze else "learning", params
        )
        transformation = optax.partition(
            {"learning": transformation} | _FROZEN, is_frozen
        )
    return widened(transformation)


_FROZEN: dict[Hashable, optax.GradientTransformation] = {"frozen": optax.set_to_zero()}


def _optimizer(
    plan: Plan, schedule: optax.Schedule, layouts: Layouts, steps: int
) -> optax.GradientTransformation:
    if plan.schedule:
        schedule = registry.make(
            "schedules", plan.schedule, **surroundings.Schedules(steps=steps)
        )
    return registry.make(
        "optimizers",
        plan.method,
        **surroundings.Optimizers(
            learning_rate=lambda step: plan.lr * schedule(step),
            weight_decay=plan.weight_decay,
            layouts=layouts,
            epsilon_scale=plan.epsilon_scale,
            steps=steps,
        ),
    )


def stop_frozen(
    params: Any, planned: Mapping[str, Plan], layouts: Layouts = None
) -> Any:
    """Stops the gradients of frozen parameters, and of frozen slices of stacked ones.

    Inside a differentiated function, the gradient of a parameter that is frozen as a
    whole is then zero without being computed.

    Args:
      params: The parameters.
      planned: The plan of every path, from `plans`.
      layouts: A tree of layouts like the parameters; None reads their shapes.

    Returns:
      The same values.
    """
    kept = map_named(lambda name, _: _kept(planned[name]), params)

    def one(layout: Layout, leaf, is_kept):
        del layout
        if np.all(is_kept):
            return leaf
        stopped = jax.lax.stop_gradient(leaf)
        if not np.any(is_kept):
            return stopped
        return jnp.where(_on_slices(is_kept, leaf), leaf, stopped)

    return map_leaves(one, layouts, params, kept)


def _kept(plan: Plan) -> Any:
    """1 where a parameter, or a slice of it, is not frozen from start to end."""
    if plan.freeze:
        return np.zeros((), bool)
    return np.ones((), bool) if callable(plan.factor) else np.not_equal(plan.factor, 0)


def _on_slices(factor: Any, x: jax.Array) -> jax.Array:
    """Factors, one or one for each slice of axis 0, in the shape of a leaf."""
    factor = jnp.asarray(factor)
    return factor.reshape(*factor.shape, *(1,) * (x.ndim - factor.ndim))


def _zero_frozen(kept: Any, layouts: Layouts) -> optax.GradientTransformation:
    def one(layout: Layout, gradient, is_kept):
        del layout
        return jnp.where(_on_slices(is_kept, gradient), gradient, 0.0)

    return optax.stateless(lambda g, _: map_leaves(one, layouts, g, kept))


def scale_by_factors(
    factors: Any, layouts: Layouts = None
) -> optax.GradientTransformation:
    """Multiplies updates by factors, each parameter or each layer by its own.

    Args:
      factors: A tree like the parameters: a number, an array with one number for
        each slice of axis 0, or a function from the step to either.
      layouts: A tree of layouts like the parameters.

    Returns:
      The gradient transformation; its state counts steps.
    """

    def update(updates, state, params=None):
        del params

        def one(layout, u, factor):
            del layout
            if callable(factor):
                factor = factor(state.count)
            elif not np.any(np.asarray(factor) != 1):
                return u
            return scaled(u, _on_slices(factor, u))

        moves = map_leaves(one, layouts, updates, factors)
        return moves, optax.ScaleByScheduleState(state.count + 1)

    def init(params):
        del params
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

    return optax.GradientTransformation(init, update)
