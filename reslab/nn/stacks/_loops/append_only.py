"""The loop for histories: what was written is kept once."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from reslab.core.losses import LOSSES, total_loss
from reslab.core.platform import platform
from reslab.core.taps import TAPS
from reslab.core.types import Shared, Stream
from reslab.core.varying import shape_of, varying_axes, varying_like
from reslab.nn.base.history import History
from reslab.nn.stacks._loops.span import Change, Span

# (variables, history, shared, x) -> (history, written, change)
Step = Callable[..., tuple[History, Shared, Any]]


def refusal(spans: Sequence[Span], stream: Stream) -> str:
    """Names what of the spans this loop cannot carry; "" is nothing."""
    if not isinstance(stream, History):
        return "a stream that every layer changes"
    if any(span.state is not None for span in spans):
        return "states of a model that generates"
    if any(span.renews for span in spans):
        return "a depth memory that later layers change"
    if any(TAPS in span.mutable for span in spans):
        return "taps, which may need a gradient"
    return ""


def run(
    spans: Sequence[Span], history: History, shared: Shared
) -> tuple[History, Shared, list[Change]]:
    """Scans over all periods; the backward pass needs the last sources alone.

    Every period is computed again in the backward pass, whatever `remat` says. Losses
    ride in the history, because only what is carried there has a gradient.

    Args:
      spans: The spans.
      history: The history before the first period.
      shared: The depth memory.

    Returns:
      The history, the depth memory, and the change of each span, stacked; the
      change of the last span has the sum of all losses.
    """
    has_losses = any(LOSSES in span.mutable for span in spans)
    if has_losses:
        history = history.carry(**history.carried, **{LOSSES: jnp.zeros(())})
    steps = [
        _with_losses_carried(span.step) if has_losses else span.step for span in spans
    ]
    xs = [span.xs for span in spans]
    history, shared, changes = append_only_scan(steps, xs, history, shared)
    if has_losses:
        carried = dict(history.carried)
        total = {LOSSES: {"total": (carried.pop(LOSSES),)}}
        history = history.carry(**carried)
        last = changes[-1]
        changes[-1] = last._replace(collections={**last.collections, **total})
    return history, shared, changes


def _with_losses_carried(step: Step) -> Step:
    """Makes a step add its losses up in the history."""

    def carrying(variables, history, shared, x):
        carried = dict(history.carried)
        total = carried.pop(LOSSES)
        history, written, change = step(variables, history.carry(**carried), shared, x)
        collections = dict(change.collections)
        total += total_loss({LOSSES: collections.pop(LOSSES, {})})
        history = history.carry(**history.carried, **{LOSSES: total})
        return history, written, change._replace(collections=collections)

    return carrying


def append_only_scan(
    steps: Sequence[Step], xs: Sequence[Any], history: History, shared: Shared
) -> tuple[History, Shared, list[Any]]:
    """Scans each step over its inputs, with a backward pass of its own.

    Sources never change once written, so the last array of them holds what every
    step has read. The forward pass keeps that, the variables, and what is carried
    beside the sources (where a step uses it); the backward pass goes through the
    steps in the other order, computes each again and takes its gradient. Memory grows
    with the number of steps, not with its square as it does where a scan carries the
    sources. What steps change beside history and depth memory has no gradient.

    Args:
      steps: Pure steps, `step(variables, history, shared, x)`; they may use any array
        around them.
      xs: The variables and the other inputs of each step, stacked on axis 0.
      history: The history before the first step.
      shared: The depth memory.

    Returns:
      The history, the depth memory, and what each step changed, stacked.
    """
    history = varying_like(history, history, xs, shared)
    plans, spec = [], _shapes(shared)
    for step, inputs in zip(steps, xs, strict=True):
        plans.append(_Plan.of(step, inputs, history, spec))
        spec = {**spec, **plans[-1].written}
    around = [plan.consts for plan in plans]
    if varying_axes(around) - varying_axes(history):
        return append_only_scan(steps, xs, varying_like(history, around), shared)

    def run(variables, history, shared, xs, consts):
        changed, carried, sources = [], [], history.sources
        for plan, own, x, (used, _) in zip(plans, variables, xs, consts, strict=True):

            def body(history, scanned, plan=plan, used=used, shared=shared):
                before = {key: history.carried[key] for key in plan.uses}
                own, x = scanned
                history, written, updates = plan.forward(used, own, history, shared, x)
                history = varying_like(_laid_out(history), sources)
                return history, (written, updates, before)

            history, (written, updates, before) = jax.lax.scan(body, history, (own, x))
            shared = {**shared, **jax.tree.map(lambda a: a[0], written)}
            changed.append(updates)
            carried.append(before)
        return (history, shared, changed), (shared, carried)

    def forward(variables, history, shared, xs, consts):
        result, kept = run(variables, history, shared, xs, consts)
        return result, (variables, result[0].sources, *kept, xs, consts)

    def backward(saved, cotangents):
        variables, sources, shared, carried, xs, consts = saved
        by_history, by_shared, _ = cotangents
        by_variables, by_consts = [], []
        for plan, own, x, (_, used), before in reversed(
            list(zip(plans, variables, xs, consts, carried, strict=True))
        ):
            # Gradients of the sources that this span wrote enter at its first step.
            by_written = jax.tree.map(
                lambda d, n=plan.count: (
                    varying_like(jnp.zeros((n, *d.shape), d.dtype), d).at[0].set(d)
                ),
                {key: by_shared[key] for key in plan.written},
            )
            seen = {k: v for k, v in shared.items() if k not in by_written}
            own_floats, own_others, join_own = _floats(own)
            used_floats, used_others, join_used = _floats(used)

            def body(
                carry,
                scanned,
                plan=plan,
                seen=seen,
                used_floats=used_floats,
                used_others=used_others,
                join_own=join_own,
                join_used=join_used,
            ):
                by_history, by_seen, by_used = carry
                (floats, others), x, before, by_written = scanned
                unused = _zeros(by_history.carried)
                before = {**unused, **before}

                def step(floats, sources, carried, seen, used_floats):
                    history, written, _ = plan.again(
                        join_used(used_floats, used_others),
                        join_own(floats, others),
                        History(sources, carried, is_complete=True),
                        seen,
                        x,
                    )
                    return history.sources, history.carried, written

                _, pull = jax.vjp(step, floats, sources, before, seen, used_floats)
                by_own, by_sources, by_carried, more_seen, more_used = pull(
                    (by_history.sources, by_history.carried, by_written)
                )
                carry = (
                    History(by_sources, by_carried),
                    jax.tree.map(jnp.add, by_seen, more_seen),
                    jax.tree.map(jnp.add, by_used, more_used),
                )
                return carry, by_own

            start = (
                by_history,
                {key: by_shared[key] for key in seen},
                _zeros(used_floats),
            )
            (by_history, by_shared, by_used), by_own = jax.lax.scan(
                body,
                start,
                ((own_floats, own_others), x, before, by_written),
                reverse=True,
            )
            nothing = [None] * len(own_others)
            by_variables.insert(0, join_own(by_own, nothing))
            by_consts.insert(0, (None, join_used(by_used, [None] * len(used_others))))
        return by_variables, by_history, by_shared, None, by_consts

    def result_of(*arguments):
        return run(*arguments)[0]

    scan = jax.custom_vjp(result_of)
    scan.defvjp(forward, backward)
    return scan(
        [variables for variables, _ in xs],
        history,
        dict(shared),
        [x for _, x in xs],
        around,
    )


@dataclasses.dataclass(frozen=True)
class _Plan:
    """The step of a span, made a function of arguments alone.

    Attributes:
      forward: The step; its first argument is what it uses of its surroundings.
      again: The same over a complete history.
      consts: What each of them uses.
      written: Shapes of what it writes to the depth memory.
      uses: What it reads of that which the step before carried beside the sources.
      count: How often it is applied.
    """

    forward: Step
    again: Step
    consts: tuple[Any, Any]
    written: Mapping[str, Any]
    uses: tuple[str, ...]
    count: int

    @classmethod
    def of(cls, step: Step, xs: Any, history: History, shared: Any) -> "_Plan":
        variables, x = jax.tree.map(lambda a: shape_of(a, a.shape[1:]), xs)
        complete = dataclasses.replace(history, is_complete=True)
        forward, used, _, _ = _closed(step, variables, _shapes(history), shared, x)
        again, used_again, (_, written, _), inputs = _closed(
            step, variables, _shapes(complete), shared, x
        )
        uses = tuple(key for key, is_used in inputs[1].carried.items() if is_used)
        count = jax.tree.leaves(xs)[0].shape[0]
        return cls(forward, again, (used, used_again), written, uses, count)


def _laid_out(history: History) -> History:
    """Keeps the order of axes in memory that the backward pass wants.

    Left alone, the TPU compiler writes the sources in another order and then copies
    all of them, in float32.
    """
    if platform() != "tpu":
        return history
    sources: Any = history.sources
    layout = Layout(major_to_minor=tuple(range(sources.ndim)))
    return dataclasses.replace(history, sources=with_layout_constraint(sources, layout))


def _shapes(tree: Any) -> Any:
    return jax.tree.map(shape_of, tree)


def _zeros(tree: Any) -> Any:
    return jax.tree.map(lambda a: varying_like(jnp.zeros_like(a), a), tree)


def _closed(step: Step, *arguments: Any) -> tuple[Any, Any, Any, Any]:
    """Makes a function of its arguments out of one that uses arrays around it.

    Returns:
      The function, whose first argument are those arrays; the arrays; the shapes of
      its result; and which arguments it uses at all, in a tree like theirs.
    """
    closed, shapes = jax.make_jaxpr(step, return_shape=True)(*arguments)
    structure = jax.tree.structure(shapes)
    used = {id(v) for equation in closed.jaxpr.eqns for v in equation.invars}
    used |= {id(v) for v in closed.jaxpr.outvars}
    is_used = jax.tree.unflatten(
        jax.tree.structure(arguments), [id(v) in used for v in closed.jaxpr.invars]
    )

    def pure(consts, *arguments):
        leaves = jax.core.eval_jaxpr(closed.jaxpr, consts, *jax.tree.leaves(arguments))
        return jax.tree.unflatten(structure, leaves)

    return pure, closed.consts, shapes, is_used


def _floats(tree: Any) -> tuple[list[Any], list[Any], Callable[..., Any]]:
    """Takes a tree apart: leaves with a gradient, others, and how to join them."""
    leaves, structure = jax.tree.flatten(tree)
    has_gradient = [jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves]

    def join(floats, others):
        pools = {True: iter(floats), False: iter(others)}
        return jax.tree.unflatten(structure, [next(pools[has]) for has in has_gradient])

    floats = [leaf for leaf, has in zip(leaves, has_gradient, strict=True) if has]
    others = [leaf for leaf, has in zip(leaves, has_gradient, strict=True) if not has]
    return floats, others, join
