"""The loop whose first layers learn nothing: the backward pass ends above them."""

import jax
import jax.numpy as jnp

from reslab.core.errors import ReslabError
from reslab.core.model_state import GRADIENT_STATS
from reslab.core.types import Shared, Stream
from reslab.nn.stacks._loops.scan import scan
from reslab.nn.stacks._loops.span import Change, Span


def refusal(span: Span) -> str:
    """Names what of a span this loop cannot carry; "" is nothing."""
    if GRADIENT_STATS in span.collections:
        # The derivative by such a value is its next value, which a cut removes.
        return "a norm whose backward pass keeps statistics"
    return ""


def run(
    span: Span, frozen: int, stream: Stream, shared: Shared
) -> tuple[Stream, Shared, Change]:
    """Applies a span in two scans, with no gradient through the first.

    Args:
      span: The span.
      frozen: Number of first periods that need no gradient.
      stream: The stream.
      shared: The depth memory.

    Returns:
      The stream, the depth memory, and changes stacked on axis 0.

    Raises:
      ReslabError: If the span has what this loop cannot carry.
    """
    if reason := refusal(span):
        raise ReslabError(
            "a backward pass that ends at a layer",
            expected="layers that it can pass by",
            got=reason,
            hint="another norm, or another optimizer",
        )
    first = span.rows(slice(None, frozen)).stopped()
    after = scan(first, *jax.lax.stop_gradient((stream, shared)))
    stream, shared, change = jax.lax.stop_gradient(after)
    if frozen == span.count:
        return stream, shared, change
    rest = span.rows(slice(frozen, None))
    stream, shared, more = scan(rest, stream, shared)
    return stream, shared, jax.tree.map(lambda *a: jnp.concatenate(a), change, more)
