"""Earlier tokens of a row, for parts of the stream that look along the sequence."""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from reslab.nn.base import ragged


@dataclasses.dataclass
class Tokens:
    """The rows of tokens that a residual is called on.

    A residual that sets `follows_tokens = True` reads them by `shifts`, and says by
    `empty_tails(batch, features, dtype, is_end=...)` what it keeps of earlier calls:
    of a sublayer, or of the ends of the stream.

    Attributes:
      segments: Document of each token (batch, length), or None.
      tails: The latest arrays of earlier calls by name while generating, else None.
      left: The same after this call.
    """

    segments: jax.Array | None = None
    tails: Mapping[str, jax.Array] | None = None
    left: dict[str, jax.Array] = dataclasses.field(default_factory=dict)

    def shifts(self, x: jax.Array, width: int, name: str) -> list[jax.Array]:
        """Returns `x` as it was 0, 1, ..., width - 1 tokens ago.

        Before the first token of a document there are zeros. With tails, document 0
        is padding, which is passed by.

        Args:
          x: Features (batch, length, embed).
          width: Number of arrays.
          name: Name of the tail.
        """
        reach, length = width - 1, x.shape[1]
        tail = None if self.tails is None else self.tails[name]
        # A probe may push a row of ones through the stream.
        is_ours = self.segments is not None and self.segments.shape == x.shape[:2]
        segments = self.segments if is_ours else None
        if tail is None or tail.shape[0] != x.shape[0]:
            return _within(x, width, segments)
        is_real = ragged.real_tokens(segments)
        past = ragged.append(tail, x, is_real)
        # A probe may push ones through the stream after it.
        self.left.setdefault(name, past[:, length:])
        return [
            ragged.restore_order(past[:, start : start + length], is_real)
            for start in range(reach, -1, -1)
        ]


def _within(x, width, segments):
    """The shifts of whole rows."""
    length, found = x.shape[1], [x]
    for back in range(1, width):
        shifted = jnp.pad(x, ((0, 0), (back, 0), (0, 0)))[:, :length]
        if segments is not None:
            before = jnp.pad(segments, ((0, 0), (back, 0)))[:, :length]
            is_same = (before == segments)[..., None]
            shifted = jnp.where(is_same, shifted, jnp.zeros_like(shifted))
        found.append(shifted)
    return found


_tokens: contextvars.ContextVar[Tokens | None] = contextvars.ContextVar(
    "tokens", default=None
)


@contextlib.contextmanager
def telling_tokens(tokens: Tokens) -> Iterator[Tokens]:
    """Tells the residuals that are called inside their tokens."""
    token = _tokens.set(tokens)
    try:
        yield tokens
    finally:
        _tokens.reset(token)


def known_tokens() -> Tokens:
    """The tokens here; outside of a model, rows of one document."""
    return _tokens.get() or Tokens()


def follows_tokens(residual: Any) -> bool:
    """Returns whether a residual looks along the sequence."""
    return getattr(residual, "follows_tokens", False)
