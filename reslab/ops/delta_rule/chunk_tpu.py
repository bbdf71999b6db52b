"""One chunk of the delta rule on a TPU, as a function that is differentiable.

Products of float32 are made of those of the matrix unit.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

# Contracted axes of a product of two matrices: a b, a b^T, a^T b.
_AXES = {"nn": ((1,), (0,)), "nt": ((1,), (1,)), "tn": ((0,), (0,))}


@dataclasses.dataclass(frozen=True)
class Precision:
    """The way in which products of float32 are made of those of the matrix unit.

    Attributes:
      is_exact: Whether all products are those of float32. If not, they are sums of
        three products of bfloat16, of one where both operands have 8 bits.
    """

    is_exact: bool

    def product(self, kind: str, one: Any, other: Any, narrow: str = "") -> jax.Array:
        """Multiplies matrices.

        Args:
          kind: Their order: "nn", "nt" or "tn", where t is transposed.
          one: The first.
          other: The second.
          narrow: Letters of those that bfloat16 holds exactly, of "ab".
        """
        return _product(kind, "ab" if self.is_exact else narrow, self, one, other)

    def doubled(self, one: jax.Array, other: jax.Array) -> jax.Array:
        """Multiplies square matrices X, Y given as [X, X] and [Y, Y]: [X Y, X Y].

        They are half as wide as the matrix unit, which takes the parts of both side by
        side: the three products of bfloat16 are one.
        """
        half, width = one.shape
        is_left = jax.lax.broadcasted_iota(jnp.int32, one.shape, 1) < half
        if self.is_exact:
            both = jnp.concatenate([other, jnp.zeros_like(other)], axis=0)
            return self._dot("nn", "", jnp.where(is_left, one, 0.0), both)

        def parts(x):
            high = x.astype(jnp.bfloat16).astype(jnp.float32)
            return high, jnp.where(is_left, high, x - high).astype(jnp.bfloat16)

        _, rows = parts(one)
        high, above = parts(other)
        below = jnp.where(is_left, high, 0.0).astype(jnp.bfloat16)
        found = jax.lax.dot_general(
            rows,
            jnp.concatenate([above, below], axis=0),
            (_AXES["nn"], ((), ())),
            preferred_element_type=jnp.float32,
        )
        return found + pltpu.roll(found, width // 2, 1)

    def _dot(self, kind: str, narrow: str, one: Any, other: Any) -> Any:
        dims = (_AXES[kind], ((), ()))
        if self.is_exact:
            highest = jax.lax.Precision.HIGHEST
            return jax.lax.dot_general(
                one, other, dims, highest, preferred_element_type=jnp.float32
            )
        total = None
        for n, a in enumerate(_parts(one, "a" in narrow)):
            for m, b in enumerate(_parts(other, "b" in narrow)):
                if n + m < 2:
                    part = jax.lax.dot_general(
                        a, b, dims, preferred_element_type=jnp.float32
                    )
                    total = part if total is None else total + part
        return total


def _parts(x, is_narrow):
    high = x.astype(jnp.bfloat16)
    if is_narrow:
        return [high]
    return [high, (x - high.astype(jnp.float32)).astype(jnp.bfloat16)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _product(kind, narrow, precision, one, other):
    return precision._dot(kind, narrow, one, other)


def _product_forward(kind, narrow, precision, one, other):
    return precision._dot(kind, narrow, one, other), (one, other)


def _product_backward(kind, narrow, precision, kept, cotangent):
    one, other = kept
    a, b = ("a" in narrow), ("b" in narrow)
    dot = precision._dot
    if kind == "nn":
        left = dot("nt", "b" * b, cotangent, other)
        return left, dot("tn", "a" * a, one, cotangent)
    if kind == "nt":
        left = dot("nn", "b" * b, cotangent, other)
        return left, dot("tn", "b" * a, cotangent, one)
    left = dot("nt", "a" * b, other, cotangent)
    return left, dot("nn", "a" * a, one, cotangent)


_product.defvjp(_product_forward, _product_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _inverses(precision, systems):
    """(I + A)^-1 of strictly lower matrices, joined from those of their halves."""
    half, count = systems[0].shape[0] // 2, len(systems)
    left = jax.lax.broadcasted_iota(jnp.int32, (half, 2 * half), 1) < half
    # Each half twice, side by side.
    upper = [a[:half] + pltpu.roll(a[:half], half, 1) for a in systems]
    lower = [(a[half:], pltpu.roll(a[half:], half, 1)) for a in systems]
    between = [jnp.where(left, a, other) for a, other in lower]
    lower = [jnp.where(left, other, a) for a, other in lower]
    halves = _inverses_of_halves(precision, [*upper, *lower])
    upper, lower = halves[:count], halves[count:]
    between = _doubled(precision, lower, _doubled(precision, between, upper))
    each = zip(upper, lower, between, strict=True)
    return tuple(
        jnp.concatenate([jnp.where(left, a, 0.0), jnp.where(left, -c, b)], axis=0)
        for a, b, c in each
    )


def _inverses_of_halves(precision, systems):
    """The same of matrices given twice side by side, joined from blocks of four."""
    half, width = systems[0].shape
    row, column = (
        jax.lax.broadcasted_iota(jnp.int32, (half, width), axis) for axis in (0, 1)
    )
    column = column & (half - 1)
    leaves = [jnp.where((row >> 2) == (column >> 2), a, 0.0) for a in systems]
    squares = _doubled(precision, leaves, leaves)
    identity = jnp.where(row == column, 1.0, 0.0)
    # (I - A) (I + A^2): the fourth power of a block of four is zero.
    cubes = _doubled(precision, leaves, squares)
    each = zip(leaves, squares, cubes, strict=True)
    inverses = [identity - leaf + square - cube for leaf, square, cube in each]
    power = 2
    while 1 << power < half:
        is_pair = (row >> power + 1) == (column >> power + 1)
        is_between = is_pair & ((row >> power) > (column >> power))
        joints = [jnp.where(is_between, a, 0.0) for a in systems]
        between = _doubled(precision, inverses, _doubled(precision, joints, inverses))
        inverses = [a - b for a, b in zip(inverses, between, strict=True)]
        power += 1
    return inverses


def _doubled(precision, ones, others):
    return [precision.doubled(*pair) for pair in zip(ones, others, strict=True)]


def _inverses_forward(precision, systems):
    inverses = _inverses(precision, systems)
    return inverses, inverses


def _inverses_backward(precision, inverses, cotangents):
    pairs = zip(inverses, cotangents, strict=True)
    left = [precision.product("tn", *pair) for pair in pairs]
    pairs = zip(left, inverses, strict=True)
    return (tuple(-precision.product("nt", *pair) for pair in pairs),)


_inverses.defvjp(_inverses_forward, _inverses_backward)


def places(size: int) -> Iterator[jax.Array]:
    """Rows and columns of a square matrix."""
    shape = (size, size)
    return (jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (0, 1))


def as_column(line: jax.Array) -> jax.Array:
    """The transposition of a row (1, size)."""
    row, column = places(line.shape[1])
    return jnp.sum(jnp.where(row == column, line, 0.0), axis=1, keepdims=True)


def chunks(
    chunk: Any, precision: Precision, heads: Sequence[Any], is_narrow: bool = False
) -> list[Any]:
    """One chunk of several heads, all float32; see `chunked.chunked` for the equations.

    The heads go in step, product by product: those of one head wait for each other,
    those of several fill the waits.

    Args:
      chunk: What one head does: `chunk_of_heads`, or another function like it.
      precision: The way of products.
      heads: For each: query, key, value, beta, decays, memory, and what has no
        gradient. Queries and keys are numbers of bfloat16 unless all is exact.
      is_narrow: Whether memories are numbers of bfloat16, too.

    Returns:
      For each head the output and the memory after the chunk.
    """
    going: list[Any] = [chunk(precision, is_narrow, *head) for head in heads]
    answers: Sequence[Any] = [None] * len(going)
    while True:
        asked, found = [], []
        for head, answer in zip(going, answers, strict=True):
            try:
                asked.append(head.send(answer))
            except StopIteration as end:
                found.append(end.value)
        if found:
            return found
        is_pause = asked[0] is None
        answers = asked if is_pause else _inverses(precision, tuple(asked))


def decays_of(
    fine: jax.Array, coarse: jax.Array, begun: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Decays of heads; see `chunk_of_heads` for the arguments.

    Returns:
      Those of pairs, since the start and to the end, as columns, and of the chunk.
    """
    row, column = places(fine.shape[1])
    place = jax.lax.broadcasted_iota(jnp.int32, fine.shape, 1)
    end = fine.shape[1] - 1

    def last(line):
        return jnp.sum(jnp.where(place == end, line, 0.0), axis=1, keepdims=True)

    fine_of_row, coarse_of_row, begun_of_row = map(as_column, (fine, coarse, begun))
    is_seen = (row >= column) & (begun_of_row == begun)
    apart = (coarse_of_row - coarse) + (fine_of_row - fine)
    apart = jnp.where(is_seen & (row > column), apart, 0.0)
    decay = jnp.where(is_seen, jnp.exp(apart), 0.0)
    # No gradient passes a document that has ended.
    from_start = jnp.where(begun_of_row == 0, jnp.exp(coarse_of_row + fine_of_row), 0.0)
    left = (last(coarse) - coarse) + (last(fine) - fine)
    to_end = jnp.exp(jnp.where(place < end, left, 0.0))
    to_end = as_column(jnp.where(begun == last(begun), to_end, 0.0))
    keep = jnp.where(last(begun) == 0, jnp.exp(last(coarse) + last(fine)), 0.0)
    return decay, from_start, to_end, keep


def chunk_of_heads(
    precision: Precision,
    is_narrow: bool,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    beta: jax.Array,
    fine: jax.Array,
    memory: jax.Array,
    coarse: jax.Array,
    begun: jax.Array,
) -> Iterator[Any]:
    """One head with one decay for all channels of a token.

    It yields a system for its inverse, and None where others may go on.

    Args:
      precision: The way of products.
      is_narrow: Whether the memory is of numbers of bfloat16.
      query: Queries (size, key_dim).
      key: Keys, likewise.
      value: Values (size, value_dim).
      beta: Strengths (1, size).
      fine: Second part of the running sums of log decays (1, size).
      memory: The memory before the chunk (key_dim, value_dim).
      coarse: First part of the sums.
      begun: Documents begun in the row so far (1, size).

    Returns:
      The output and the memory after the chunk.
    """
    of_memory, scale = "ab" if is_narrow else "a", query.shape[1] ** -0.5
    row, column = places(query.shape[0])
    product, beta = precision.product, as_column(beta)
    decay, from_start, to_end, keep = decays_of(fine, coarse, begun)
    system = beta * decay * product("nt", key, key, "ab")
    inverse = yield jnp.where(row > column, system, 0.0)
    found = product("nn", key, memory, of_memory)
    read = product("nn", query, memory, of_memory)
    yield
    seen = scale * decay * product("nt", query, key, "ab")
    yield
    change = product("nn", inverse, beta * (value - from_start * found))
    yield
    output = scale * from_start * read + product("nn", seen, change)
    yield
    return output, keep * memory + product("tn", key, to_end * change, "a")
