"""A layer taken apart: the functions and arrays that its attention goes through."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from reslab.core.precision import statistics_dtype

# Index and document of tokens, (batch, n).
Marks = tuple[jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True)
class Layer:
    """Pure functions of some tokens, `n` of them; a stream ends in (batch, n, embed).

    Attributes:
      read: `(params, aux, stream, places)` to the query, and the key and value with
        which a token attends to itself, each (batch, n, heads, size).
      write: `(params, aux, stream, attended, places)` to the stream after the layer.
      pair: `(params, aux, written, places)` to the key and the value with which later
        tokens attend to a token.
    """

    read: Callable[..., Any]
    write: Callable[..., Any]
    pair: Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores between tokens, and which of them count.

    Attributes:
      scale: Factor on products of queries and keys.
      slopes: Fall of scores with distance (heads,), or None.
    """

    scale: float
    slopes: jax.Array | None

    def own(self, query: jax.Array, key: jax.Array) -> jax.Array:
        """Scores of tokens with themselves, without the axis of features."""
        wide = statistics_dtype(query.dtype)
        return self.scale * jnp.sum(query.astype(wide) * key.astype(wide), axis=-1)

    def __call__(
        self,
        query: jax.Array,
        key: jax.Array,
        rows: Marks,
        columns: Marks,
        is_causal: bool = False,
    ) -> jax.Array:
        """Scores of queries with keys, (batch, heads, n, m).

        Args:
          query: (batch, heads, n, size).
          key: (batch, heads, m, size).
          rows: Index and document of each query, (batch, n).
          columns: The same of each key, (batch, m).
          is_causal: Whether keys at or after a query are hidden.
        """
        wide = statistics_dtype(query.dtype)
        scores = self.scale * jnp.einsum(
            "bhnd,bhmd->bhnm", query, key, preferred_element_type=wide
        )
        (row, row_document), (column, column_document) = rows, columns
        if self.slopes is not None:
            apart = (column[:, None, None] - row[:, None, :, None]).astype(wide)
            slopes = self.slopes.astype(wide)[None, :, None, None]
            scores = scores + slopes * apart
        is_seen = row_document[:, :, None] == column_document[:, None]
        if is_causal:
            is_seen = is_seen & (column[:, None] < row[:, :, None])
        # Large but finite: infinity minus infinity is NaN.
        return jnp.where(is_seen[:, None], scores, -1e30)


def heads_first(x: jax.Array) -> jax.Array:
    """(batch, n, heads, size) to (batch, heads, n, size), or back."""
    return jnp.swapaxes(x, 1, 2)


def tokens_first(x: jax.Array, axis: int = -2) -> jax.Array:
    """Moves the axis of tokens to the front."""
    return jnp.moveaxis(x, axis, 0)


def inside(tree: Any) -> Any:
    """(n, batch, heads, ...) to (batch, heads, n, ...); (n, batch) to (batch, n)."""
    return jax.tree.map(lambda a: jnp.moveaxis(a, 0, min(2, a.ndim - 1)), tree)


def outside(tree: Any) -> Any:
    """(batch, heads, n, ...) to (n, batch, heads, ...)."""
    return jax.tree.map(lambda a: jnp.moveaxis(a, 2, 0), tree)


def marks(place: Marks, start: Any, size: int) -> Marks:
    """Takes the marks of `size` tokens."""
    index, documents = (
        jax.lax.dynamic_slice_in_dim(a, start, size, axis=1) for a in place
    )
    return index, documents


def part(tree: Any, start: Any, size: int) -> Any:
    """Takes `size` tokens of every array (..., tokens, features) of a tree."""
    return jax.tree.map(
        lambda a: jax.lax.dynamic_slice_in_dim(a, start, size, axis=a.ndim - 2), tree
    )


def put(tree: Any, new: Any, start: Any) -> Any:
    """Replaces tokens of every array (..., tokens, features) of a tree."""
    return jax.tree.map(
        lambda a, b: jax.lax.dynamic_update_slice_in_dim(a, b, start, axis=a.ndim - 2),
        tree,
        new,
    )
