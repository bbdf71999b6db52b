"""The loop that ends: passes over the same layers until every row has converged."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from reslab.core.types import State, Stream

# (stream, number of the pass, state of the pass) -> (stream, new state)
Pass = Callable[[Stream, jax.Array, State], tuple[Stream, State]]
# (stream before, stream after, what the last call returned) -> (which rows are done
# (batch,), what the next call is given)
Criterion = Callable[[Stream, Stream, Any], tuple[jax.Array, Any]]


def run(
    one_pass: Pass, stream: Stream, state: State, passes: int, criterion: Criterion
) -> tuple[Stream, State, jax.Array]:
    """Applies passes until the criterion holds for every row, at most `passes`.

    A row that is done keeps its stream; its later passes are computed from that while
    other rows go on. What the last pass run has added to its state is added to
    those of all that were not: later tokens find it at any depth. There is no gradient,
    and the host is not asked.

    Args:
      one_pass: The layers, as a pure function.
      stream: The stream before the first pass.
      state: States of the passes, stacked on axis 0; of caches that keep every token.
      passes: Most passes.
      criterion: Which rows are done. It is first given None.

    Returns:
      The stream, the new states, and the number of passes that each row took (batch,).
    """
    batch = jax.tree.leaves(stream)[0].shape[-3]

    def at(number):
        return jax.tree.map(
            lambda a: jax.lax.dynamic_index_in_dim(a, number, keepdims=False), state
        )

    def advance(stream, number):
        return one_pass(stream, number, at(number))

    def body(carry):
        number, stream, states, is_done, taken, known = carry
        after, own = advance(stream, number)
        after = jax.tree.map(
            lambda new, old: jnp.where(is_done[:, None, None], old, new), after, stream
        )
        states = jax.tree.map(
            lambda all_, one: jax.lax.dynamic_update_index_in_dim(all_, one, number, 0),
            states,
            own,
        )
        taken = taken + jnp.where(is_done, 0, 1)
        now, known = criterion(stream, after, known)
        return number + 1, after, states, is_done | now, taken, known

    nobody, none = jnp.zeros(batch, bool), jnp.zeros(batch, jnp.int32)
    # The first pass stands before the loop: it says what the criterion hands on.
    begun = body((jnp.int32(0), stream, state, nobody, none, None))
    number, stream, states, _, taken, _ = jax.lax.while_loop(
        lambda carry: (carry[0] < passes) & ~jnp.all(carry[3]), body, begun
    )

    def filled(new, old):
        last, before = (
            jax.lax.dynamic_index_in_dim(a, number - 1, keepdims=False)
            for a in (new, old)
        )
        is_left_out = jnp.arange(passes) >= number
        is_left_out = is_left_out.reshape(-1, *(1,) * last.ndim)
        return jnp.where(is_left_out & (last != before)[None], last[None], new)

    return stream, jax.tree.map(filled, states, state), taken
