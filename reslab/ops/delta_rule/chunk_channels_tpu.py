"""One chunk of the delta rule with decays of channels on a TPU, differentiable."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from reslab.ops.delta_rule.chunk_tpu import Precision, as_column, places

# A log decay that is as good as minus infinity: its exponential is 0 in float32.
LEAST = -128.0


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rolled(shift: int, x: jax.Array) -> jax.Array:
    """Moves rows down, around the end; the compiler's own has no gradient."""
    return pltpu.roll(x, shift % x.shape[0], 0)


_rolled.defvjp(
    lambda shift, x: (_rolled(shift, x), None),
    lambda shift, _, cotangent: (_rolled(-shift, cotangent),),
)


def _is_right(x, width):
    """Marks rows that are in the right one of two halves of `width`."""
    return (jax.lax.broadcasted_iota(jnp.int32, x.shape, 0) & width) != 0


def _widths(size):
    return [1 << n for n in range(size.bit_length() - 1)]


def sums_apart(log_decay: jax.Array) -> tuple[list[jax.Array], jax.Array, jax.Array]:
    """Sums of log decays from and to references between tokens.

    Two tokens are in the two halves of one block, the smallest of a size that is a
    power of two that holds both. The reference between them is the end of its left
    half. No sum is subtracted from another, so that decays of any strength leave those
    of other tokens exact to rounding.

    Args:
      log_decay: Log decays of a chunk (size, channels), finite.

    Returns:
      For blocks of 2, 4 ... tokens: of tokens in left halves the sum after them, of
      tokens in right halves the sum up to and with them; then the sums since the start
      of the chunk and to its end.
    """
    until, after, apart = log_decay, jnp.zeros_like(log_decay), []
    for width in _widths(log_decay.shape[0]):
        is_right = _is_right(log_decay, width)
        apart.append(jnp.where(is_right, until, after))
        half = until + after
        other = jnp.where(is_right, _rolled(width, half), _rolled(-width, half))
        until = until + jnp.where(is_right, other, 0.0)
        after = after + jnp.where(is_right, 0.0, other)
    return apart, until, after


def _between(size, width):
    """Places of pairs in the right and the left half of one block."""
    row, column = places(size)
    power = width.bit_length() - 1
    return (row >> power == (column >> power) + 1) & ((row & width) != 0)


def _scaled(query, key, apart, width):
    """Decay from or to the reference, rows of one product, and its keys.

    A row of a right half holds its query, one of a left half the key of the row that is
    `width` below: half of either is needed.
    """
    near = jnp.exp(apart)
    keys = near * key
    is_right = _is_right(key, width)
    return near, jnp.where(is_right, near * query, _rolled(-width, keys)), keys


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def pairs(
    precision: Precision,
    query: jax.Array,
    key: jax.Array,
    apart: Sequence[jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """Products of queries and of keys with earlier keys, decayed on the way.

    For every width of `sums_apart` one product of matrices; no exponent is positive.

    Args:
      precision: The way of products.
      query: Queries (size, channels).
      key: Keys, likewise.
      apart: Sums of `sums_apart`.

    Returns:
      Those of queries and those of keys, (size, size), zero from the diagonal on.
    """
    size = key.shape[0]
    seen = system = jnp.zeros((size, size), jnp.float32)
    for width, one in zip(_widths(size), apart, strict=True):
        _, rows, keys = _scaled(query, key, one, width)
        found = precision.product("nt", rows, keys)
        is_between = _between(size, width)
        seen = jnp.where(is_between, found, seen)
        system = jnp.where(is_between, _rolled(width, found), system)
    return seen, system


def _pairs_forward(precision, query, key, apart):
    return pairs(precision, query, key, apart), (query, key, apart)


def _pairs_backward(precision, kept, cotangents):
    query, key, apart = kept
    by_seen, by_system = cotangents
    by_query = by_key = jnp.zeros_like(key)
    by_apart, size = [], key.shape[0]
    for width, one in zip(_widths(size), apart, strict=True):
        near, rows, keys = _scaled(query, key, one, width)
        is_between, is_right = _between(size, width), _is_right(key, width)
        by_found = jnp.where(is_between, by_seen, 0.0) + _rolled(
            -width, jnp.where(is_between, by_system, 0.0)
        )
        by_rows = precision.product("nn", by_found, keys)
        of_query = near * jnp.where(is_right, by_rows, 0.0)
        of_key = precision.product("tn", by_found, rows)
        of_key = of_key + _rolled(width, jnp.where(is_right, 0.0, by_rows))
        of_key = near * of_key
        by_query, by_key = by_query + of_query, by_key + of_key
        by_apart.append(query * of_query + key * of_key)
    return by_query, by_key, by_apart


pairs.defvjp(_pairs_forward, _pairs_backward)


def chunk_of_channels(
    precision: Precision,
    is_narrow: bool,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    beta: jax.Array,
    log_decay: jax.Array,
    memory: jax.Array,
    begun: jax.Array,
) -> Iterator[Any]:
    """One head with log decays (size, channels); see `chunk_tpu.chunks`."""
    of_memory = "b" if is_narrow else ""
    size, channels = key.shape
    row, column = places(size)
    product, scale = precision.product, channels**-0.5
    beta, begun_of_row = as_column(beta), as_column(begun)
    apart, until, after = sums_apart(jnp.maximum(log_decay, LEAST))
    is_last = jax.lax.broadcasted_iota(jnp.int32, until.shape, 0) == size - 1
    whole = jnp.sum(jnp.where(is_last, until, 0.0), axis=0, keepdims=True)
    place = jax.lax.broadcasted_iota(jnp.int32, (1, size), 1)
    last = jnp.sum(jnp.where(place == size - 1, begun, 0.0), axis=1, keepdims=True)
    # No gradient passes a document that has ended.
    from_start = jnp.where(begun_of_row == 0, jnp.exp(until), 0.0)
    to_end = jnp.where(begun_of_row == last, jnp.exp(after), 0.0)
    keep = as_column(jnp.where(last == 0, jnp.exp(whole), 0.0))

    is_same = begun_of_row == begun
    seen, system = pairs(precision, query, key, apart)
    inverse = yield jnp.where(is_same, beta * system, 0.0)
    found = product("nn", from_start * key, memory, of_memory)
    read = product("nn", from_start * query, memory, of_memory)
    yield
    change = product("nn", inverse, beta * (value - found))
    yield
    own = jnp.sum(query * key, axis=1, keepdims=True)
    seen = jnp.where(row == column, own, jnp.where(is_same, seen, 0.0))
    output = scale * (read + product("nn", seen, change))
    yield
    return output, keep * memory + product("tn", to_end * key, change)
