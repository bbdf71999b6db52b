"""Layers that learn nothing in a step: the loop over layers leaves their part out."""

import contextlib
import contextvars
from collections.abc import Iterator

_count: contextvars.ContextVar[int] = contextvars.ContextVar("frozen", default=0)


@contextlib.contextmanager
def freezing_layers(count: int) -> Iterator[None]:
    """Says, while a model is traced, that its first layers need no gradient.

    The loop over layers then cuts the backward pass above them, so that nothing of
    it is computed below: no gradient of the parameters there or of the embedding.

    Args:
      count: How many layers, of all that are applied.
    """
    token = _count.set(count)
    try:
        yield
    finally:
        _count.reset(token)


def frozen_layers() -> int:
    """Returns the number of first layers that need no gradient."""
    return _count.get()
