"""The loop in parallel: layers at once, corrected by structured Newton steps."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.model_state import BATCH_STATS, GRADIENT_STATS
from reslab.core.types import Shared, State, Stream
from reslab.nn.base.history import History
from reslab.nn.stacks._loops.span import Change, Span

# The mapped axis of periods that are fused.
_FUSED = "fused"


@dataclasses.dataclass(frozen=True)
class Newton:
    """Steps of Newton's method with a cheap Jacobian of every layer.

    Attributes:
      iterations: Number of steps.
      factor: Multiple of the Jacobian.
      is_forward: Whether the first inputs are those that layers return for the first
        input, instead of that input itself.
      is_structured: Whether the Jacobian is the derivative of a layer with given
        outputs of its branches, thus of what residuals do to the stream; else it is I.
      fused: Periods that act as one: their branches read the same stream, and each
        sublayer adds all of theirs.
    """

    iterations: int = 1
    factor: float = 1.0
    is_forward: bool = False
    is_structured: bool = False
    fused: int = 1

    @property
    def sweeps(self) -> int:
        """Number of times that every layer is evaluated."""
        return self.iterations + self.is_forward


HISTORY = "a residual that reads what every earlier layer wrote"
MEMORY = "an entry of the depth memory that each layer writes"


def refusal(span: Span, stream: Stream, shared: Shared) -> str:
    """Names what of a span cannot be evaluated at once; "" is nothing."""
    if isinstance(stream, History):
        return HISTORY
    if span.renews or span.writes - set(shared):
        return MEMORY
    if any(
        name in span.mutable and name in span.collections
        for name in (BATCH_STATS, GRADIENT_STATS)
    ):
        return "statistics of a model that trains"
    return ""


def check(reason: str) -> None:
    """Refuses layers in parallel for a reason, if there is one.

    Raises:
      ReslabError: If the reason is not "".
    """
    if reason:
        raise ReslabError(
            "layers in parallel",
            expected="layers that hand on a stream alone",
            got=reason,
            hint="stack uniform",
        )


def run(
    span: Span, stream: Stream, shared: Shared, newton: Newton, earlier: State
) -> tuple[Stream, Change, State]:
    """Applies periods at once, several times.

        F_l = f_l(h_(l-1))   for all l at once,   h_0 = stream
        h_l = F_l + factor * J_l (new h_(l-1) - h_(l-1))

    As many steps as periods give what one after the other does, whatever the
    Jacobian.

    Args:
      span: The periods; its state is of the last sweep.
      stream: The stream before the first.
      shared: The depth memory, which they read alone.
      newton: The steps.
      earlier: States of the other sweeps, stacked on axis 0, or None.

    Returns:
      The stream after the last period, the changes of the last sweep, and the new
      states of the others.

    Raises:
      ReslabError: If the periods hand on more than a stream.
    """
    check(refusal(span, stream, shared))

    def sweep(inputs, state, is_corrected=True):
        own = dataclasses.replace(span, state=state)
        outputs, slope, change = evaluate(own, inputs, shared, newton)
        if is_corrected:
            outputs = corrected(outputs, inputs, newton.factor, slope)
        after = jax.tree.map(lambda a: a[-1], outputs)
        inputs = jax.tree.map(
            lambda s, a: jnp.concatenate([s[None], a[:-1]]), stream, outputs
        )
        return inputs, (after, change)

    inputs = repeated(stream, span.count // newton.fused)
    states = None
    if span.state is not None:
        states = jax.tree.map(
            lambda first, last: jnp.concatenate([first, last[None]]),
            earlier,
            span.state,
        )
    before = []
    if newton.is_forward:
        first = jax.tree.map(lambda a: a[0], states)
        states = jax.tree.map(lambda a: a[1:], states)
        inputs, (_, change) = sweep(inputs, first, is_corrected=False)
        before.append(jax.tree.map(lambda a: a[None], change.state))
    _, found = jax.lax.scan(sweep, inputs, states, length=newton.iterations)
    after, change = jax.tree.map(lambda a: a[-1], found)
    if span.state is not None:
        kept = jax.tree.map(lambda a: a[:-1], found[1].state)
        earlier = jax.tree.map(lambda *a: jnp.concatenate(a), *before, kept)
    return after, change, earlier


def repeated(stream: Stream, count: int) -> Stream:
    """The same input for every period, stacked on axis 0."""
    return jax.tree.map(lambda s: jnp.broadcast_to(s, (count, *s.shape)), stream)


def evaluate(
    span: Span, inputs: Stream, shared: Shared, newton: Newton
) -> tuple[Stream, Any, Change]:
    """Applies every period, or group of fused ones, to an input of its own.

    Args:
      span: The periods.
      inputs: The inputs, stacked on axis 0.
      shared: The depth memory.
      newton: The steps.

    Returns:
      Outputs and Jacobians, stacked on axis 0, and the changes of all periods. A
      Jacobian is a function of a change of the input, or None for I.
    """
    step, groups = span.remembered(), span.count // newton.fused

    def one(stream, variables, x):
        stream, _, change = step(variables, stream, shared, x)
        return stream, change

    def group(stream, variables, x):
        if newton.fused == 1:
            variables, x = jax.tree.map(lambda a: a[0], (variables, x))
            stream, change = one(stream, variables, x)
            return stream, jax.tree.map(lambda a: a[None], change)
        with _residuals(_added_up):
            fused = jax.vmap(one, (None, 0, 0), axis_name=_FUSED)
            streams, change = fused(stream, variables, x)
        return jax.tree.map(lambda a: a[0], streams), change

    def with_slope(stream, variables, x):
        output, change = group(stream, variables, x)
        if not newton.is_structured:
            return output, None, change

        def given(stream):
            with _residuals(_stopped):
                return group(stream, variables, x)[0]

        return output, jax.linearize(given, stream)[1], change

    def split(a):
        return a.reshape(groups, newton.fused, *a.shape[1:])

    rest = jax.tree.map(split, span.xs)
    outputs, slope, change = jax.vmap(with_slope)(inputs, *rest)
    change = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), change)
    return outputs, slope, change


def corrected(
    outputs: Stream, inputs: Stream, factor: float, slope: Any = None
) -> Stream:
    """Substitutes the outputs forwards, from the first to the last.

    Args:
      outputs: F_l, stacked on axis 0.
      inputs: h_(l-1), likewise.
      factor: Multiple of the Jacobians.
      slope: The Jacobians, likewise; None is I.
    """
    if slope is None and factor == 1:
        return jax.tree.map(
            lambda f, h: h[:1] + jnp.cumsum(f - h, axis=0), outputs, inputs
        )

    def step(new, row):
        f, h, slope = row
        change = jax.tree.map(jnp.subtract, new, h)
        change = change if slope is None else slope(change)
        new = jax.tree.map(lambda f, c: f + jnp.asarray(factor, f.dtype) * c, f, change)
        return new, new

    first = jax.tree.map(lambda h: h[0], inputs)
    return jax.lax.scan(step, first, (outputs, inputs, slope))[1]


def _residuals(replaced: Callable[..., Any]) -> Any:
    """Calls residuals inside by `replaced(call, stream, branch, **keywords)`."""

    def intercept(call, args, kwargs, context):
        is_residual = registry.family_of(type(context.module)) == "residuals"
        if context.method_name != "__call__" or not is_residual:
            return call(*args, **kwargs)
        return replaced(call, *args, **kwargs)

    return nn.intercept_methods(intercept)


def _stopped(call, stream, branch, **keywords):
    """Takes what the branch returns for given."""
    return call(stream, lambda *x: jax.lax.stop_gradient(branch(*x)), **keywords)


def _added_up(call, stream, branch, **keywords):
    """Adds what all fused periods write to the stream."""
    after = call(stream, branch, **keywords)
    return jax.tree.map(lambda a, s: s + jax.lax.psum(a - s, _FUSED), after, stream)


def trace(span: Span, stream: Stream, shared: Shared) -> tuple[Stream, Change]:
    """Applies periods one after the other; returns what each of them returned."""
    step = span.remembered()

    def body(stream, scanned):
        variables, x = scanned
        stream, _, change = step(variables, stream, shared, x)
        return stream, (stream, change)

    _, found = jax.lax.scan(body, stream, span.xs, length=span.count)
    return found
