"""Two coupled streams, whose steps can be undone (Gomez et al., 2017)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax

from reslab.core.precision import statistics_dtype


@flax.struct.dataclass
class Coupled:
    """Two streams that take turns: one is read, the other one written to.

        (a, b) -> (b, a + f(b))        undone by        (b, c) -> (c - f(b), b)

    They are kept in at least float32, so that what is undone is what was there, up to
    a rounding that is small beside the rounding of f.

    Attributes:
      older: The stream that is written to next.
      newer: The stream that is read next, written to last.
      dtype: The dtype of what is read.
    """

    older: jax.Array
    newer: jax.Array
    dtype: Any = flax.struct.field(pytree_node=False)

    @classmethod
    def start(cls, x: jax.Array) -> "Coupled":
        """Starts both streams with `x`."""
        wide = x.astype(statistics_dtype(x.dtype))
        return cls(wide, wide, x.dtype)

    def read(self) -> jax.Array:
        """Returns the input of the next sublayer."""
        return self.newer.astype(self.dtype)

    def write(self, y: jax.Array) -> "Coupled":
        """Adds the sublayer's output to the other stream."""
        newer = self.older + y.astype(self.older.dtype)
        return dataclasses.replace(self, older=self.newer, newer=newer)

    def last_read(self) -> jax.Array:
        """Returns the input of the last sublayer."""
        return self.older.astype(self.dtype)

    def unwrite(self, y: jax.Array) -> "Coupled":
        """Takes away what the last sublayer, with this output, has added."""
        older = self.newer - y.astype(self.newer.dtype)
        return dataclasses.replace(self, older=older, newer=self.older)

    def mean(self) -> jax.Array:
        """Their mean, in the dtype of what is read."""
        return (0.5 * (self.older + self.newer)).astype(self.dtype)


def undo(
    f: Callable[..., jax.Array], after: Coupled, cotangent: Coupled, *arguments: Any
) -> tuple[Coupled, Coupled, tuple[Any, ...]]:
    """Takes one step back, and its gradient, from what it left alone.

    Args:
      f: What was added, `f(read, *arguments)`.
      after: The streams after the step.
      cotangent: The gradient by them.
      *arguments: What else `f` depends on.

    Returns:
      The streams before the step, the gradient by them, and those by the arguments.
    """
    written, transpose = jax.vjp(f, after.last_read(), *arguments)
    by_reading, *more = transpose(cotangent.newer.astype(written.dtype))
    # The written and the read half, in their original order.
    read = cotangent.older + by_reading.astype(cotangent.older.dtype)
    cotangent = dataclasses.replace(cotangent, older=cotangent.newer, newer=read)
    return after.unwrite(written), cotangent, tuple(more)
