"""Histories: streams that keep what earlier sublayers wrote, for later ones to read."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.platform import computed_once
from reslab.core.precision import statistics_dtype


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["sources", "carried", "ahead"],
    meta_fields=["is_complete"],
)
@dataclasses.dataclass(frozen=True)
class History:
    """The stream of a residual with `is_history = True`.

    A source is written once and read by every later sublayer. A loop over layers that
    carried all of them would keep a copy for each layer; the loops for histories (see
    `reslab.nn.stacks._loops.append_only`) keep one in all. What they ask of a residual:

    *   it changes `sources` by `write` alone, at rows that follow from the site;
    *   it reads no row that it may still write again;
    *   what else it hands on is in `carried`, which is kept for every layer.

    Attributes:
      sources: The sources, (rows, batch, length, embed); rows not yet
        written are zeros; or a tuple of those written, which grows.
      carried: Arrays (batch, length, embed) by name.
      ahead: What the next sublayers of a layer read, where the layer read for all of
        them at once; empty between layers.
      is_complete: Whether `sources` already holds what will be written: so it is in
        the backward pass, where writing only says whose gradient a row's is.
    """

    sources: jax.Array | tuple[jax.Array, ...]
    carried: Mapping[str, jax.Array] = dataclasses.field(default_factory=dict)
    ahead: tuple[Any, ...] = ()
    is_complete: bool = False

    @classmethod
    def start(cls, x: jax.Array, rows: int, **carried: jax.Array) -> "History":
        """A history of one source, `x`, with room for `rows`."""
        sources = jnp.zeros((rows, *x.shape), x.dtype).at[0].set(x)
        sources = nn.with_logical_constraint(sources, (None, "batch", "length", None))
        return cls(sources, carried)

    @property
    def dtype(self) -> Any:
        """The dtype of the sources."""
        return self.sources[0].dtype

    @property
    def rows(self) -> int:
        """Number of rows, written or not."""
        return len(self.sources)

    def listed(self) -> "History":
        """The same with a tuple of sources; of an array, only the first row counts."""
        if isinstance(self.sources, tuple):
            return self
        return dataclasses.replace(self, sources=(self.sources[0],))

    def carry(self, **carried: jax.Array) -> "History":
        """Hands on these arrays, and no others, beside the sources."""
        return dataclasses.replace(self, carried=carried)

    def write(
        self, x: jax.Array, row: int | jax.Array, *, is_in_place: bool = False
    ) -> "History":
        """Puts a source in its row; later rows count as not written.

        Args:
          x: The source (batch, length, embed).
          row: Its row; a number where the sources are a tuple.
          is_in_place: Whether readers add to the gradients of sources in place.

        Raises:
          AssertionError: If its shape differs from other sources.
        """
        x = computed_once(x)
        if isinstance(self.sources, tuple):
            chex.assert_equal_shape([x, self.sources[0]])
            sources: Any = (*self.sources[:row], x)
            return dataclasses.replace(self, sources=sources)
        chex.assert_shape(x, self.sources.shape[1:])
        if self.is_complete:
            row = jnp.asarray(row, jnp.int32)
            sources = _attributed(self.sources, x, row, is_in_place)
        else:
            sources = jax.lax.dynamic_update_index_in_dim(self.sources, x, row, 0)
        return dataclasses.replace(self, sources=sources)

    def row(self, row: int | jax.Array) -> jax.Array:
        """One source (batch, length, embed)."""
        if isinstance(self.sources, tuple):
            return self.sources[row]
        return jax.lax.dynamic_index_in_dim(self.sources, row, 0, keepdims=False)

    def before(self, row: int | jax.Array) -> "Sources":
        """The sources in the rows before `row`."""
        if isinstance(self.sources, tuple):
            # With zero sources the output shape would be unknown.
            written = self.sources[: max(row, 1)]
            return Sources(written, jnp.arange(len(written), dtype=jnp.int32), row)
        return Sources(self.sources, jnp.arange(self.rows, dtype=jnp.int32), row)


@dataclasses.dataclass(frozen=True)
class Sources:
    """Readable sources of a history: linear algebra over its rows.

    Sums are float32, or float64 where the sources are. Nothing is a matrix product:
    a row is read once for each, at the speed of memory.

    Attributes:
      values: The sources, stacked or as a tuple.
      index: The row of each (rows,).
      limit: Rows from here on are not to be read.
    """

    values: jax.Array | tuple[jax.Array, ...]
    index: jax.Array
    limit: int | jax.Array

    @property
    def is_valid(self) -> jax.Array:
        """Which rows may be read (rows,)."""
        return self.index < self.limit

    @property
    def dtype(self) -> Any:
        """Dtype of the sums."""
        return statistics_dtype(jax.tree.leaves(self.values)[0].dtype)

    def _map(self, function):
        if isinstance(self.values, tuple):
            return jnp.stack([function(v.astype(self.dtype)) for v in self.values])
        return function(self.values.astype(self.dtype))

    def dots(self, vector: jax.Array) -> jax.Array:
        """Products (rows, batch, length) of every source with a vector.

        Args:
          vector: (embed,), or one for each token (batch, length, embed).
        """
        if vector.ndim == 1:
            vector = vector[None, None]
        if not isinstance(self.values, tuple):
            vector = vector[None]
        return self._map(lambda v: jnp.sum(v * vector, axis=-1))

    def mean_squares(self) -> jax.Array:
        """Mean squares (rows, batch, length) of the features of every source."""
        return self._map(lambda v: jnp.mean(jnp.square(v), axis=-1))

    def mix(self, weights: jax.Array) -> jax.Array:
        """Sum of the sources (batch, length, embed), each times its weight.

        Args:
          weights: (rows,), (rows, batch, length), or (rows, batch, length, embed)
            with axes of size 1 where they are all the same; zero for rows that are
            not to be read.
        """
        if weights.ndim == 1:
            weights = weights[:, None, None]
        if weights.ndim == 3:
            weights = weights[..., None]
        if isinstance(self.values, tuple):
            terms = [w * v for w, v in zip(weights, self._wide(), strict=True)]
            return functools.reduce(jnp.add, terms)
        return jnp.sum(weights * self.values.astype(self.dtype), axis=0)

    def _wide(self):
        return (value.astype(self.dtype) for value in self.values)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attributed(
    sources: jax.Array, x: jax.Array, row: jax.Array, is_in_place: bool
) -> jax.Array:
    """Returns the sources; the gradient of a row becomes the gradient of `x`."""
    return sources


def _attributed_forward(sources, x, row, is_in_place):
    return sources, row


def _attributed_backward(is_in_place, row, cotangent):
    own = jax.lax.dynamic_index_in_dim(cotangent, row, 0, keepdims=False)
    if is_in_place:
        # Read before its place is cleared; otherwise XLA would copy the whole array.
        own, cotangent = jax.lax.optimization_barrier((own, cotangent))
        empty = jnp.zeros_like(own)
        left = jax.lax.dynamic_update_index_in_dim(cotangent, empty, row, 0)
        return left, own, None
    # A comparison instead of an update: XLA fuses it into the surrounding sum.
    rows = jnp.arange(cotangent.shape[0], dtype=jnp.int32)
    is_own = rows[:, None, None, None] == row
    return jnp.where(is_own, jnp.zeros_like(cotangent), cotangent), own, None


_attributed.defvjp(_attributed_forward, _attributed_backward)
