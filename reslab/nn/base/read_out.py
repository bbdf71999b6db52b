"""The model's head, for stacks that ask for logits before the last layer."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator

import jax

# Features (batch, length, embed) to logits, as a pure function.
ReadOut = Callable[[jax.Array], jax.Array]

_read_out: contextvars.ContextVar[ReadOut | None] = contextvars.ContextVar(
    "read_out", default=None
)


@contextlib.contextmanager
def reading_out(function: ReadOut) -> Iterator[None]:
    """Makes a head known to the parts that are called inside."""
    token = _read_out.set(function)
    try:
        yield
    finally:
        _read_out.reset(token)


def read_out() -> ReadOut | None:
    """Returns the head that is known here, or None."""
    return _read_out.get()
