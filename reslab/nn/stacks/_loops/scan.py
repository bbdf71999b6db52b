"""The ordinary loop: spans in turn, each a scan over its periods."""

from collections.abc import Sequence

import jax

from reslab.core.types import Shared, Stream
from reslab.core.varying import varying_like
from reslab.nn.stacks._loops.span import Change, Span


def run(
    spans: Sequence[Span], stream: Stream, shared: Shared
) -> tuple[Stream, Shared, list[Change]]:
    """Applies spans one after the other, each by `scan`."""
    changes = []
    for span in spans:
        stream, shared, change = scan(span, stream, shared)
        changes.append(change)
    return stream, shared, changes


def scan(span: Span, stream: Stream, shared: Shared) -> tuple[Stream, Shared, Change]:
    """Applies the periods of a span, rolled or unrolled.

    What is in the depth memory is closed over, so that it is saved once; the scan
    carries only the entries that its layers overwrite. An entry that they are first to
    write is read back from the first period: such a span has one period.

    Args:
      span: The span.
      stream: The stream.
      shared: The depth memory.

    Returns:
      The stream, the depth memory, and changes stacked on axis 0.
    """
    is_carried = {key: key in span.renews for key in shared}
    fixed = {key: shared[key] for key in shared if not is_carried[key]}
    carried = {key: shared[key] for key in sorted(shared) if is_carried[key]}
    stream, carried = varying_like((stream, carried), stream, shared)
    step = span.remembered()

    def body(carry, scanned):
        stream, carried = carry
        variables, x = scanned
        stream, entries, change = step(variables, stream, {**fixed, **carried}, x)
        first = {key: value for key, value in entries.items() if key not in carried}
        return (stream, {key: entries[key] for key in carried}), (first, change)

    (stream, carried), (first, change) = jax.lax.scan(
        body,
        (stream, carried),
        span.xs,
        length=span.count,
        unroll=span.count if span.is_unrolled else 1,
    )
    first = jax.tree.map(lambda leaf: leaf[0], first)
    return stream, {**fixed, **carried, **first}, change
