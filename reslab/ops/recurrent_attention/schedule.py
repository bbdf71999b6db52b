"""The order of tiles: every pair of an earlier and a later token once."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from reslab.ops.recurrent_attention.layer import inside, outside

# Goes through the tokens of a leaf: (given, state) -> done.
Leaf = Callable[[Any, Any], Any]
# Lets tokens to come meet tokens that are done, both with what is given of them:
# (given, state, given of those done, done) -> (state, done).
Tile = Callable[[Any, Any, Any, Any], tuple[Any, Any]]

# Scores of a block, which fit in fast memory: 8 MB of float32. Blocks have at least 128
# queries and keys, the sides of a matrix unit, and at most 512 keys.
SCORES = 2**21


def conquer(
    given: Any,
    state: Any,
    size: int,
    leaf: Leaf,
    tile: Tile,
    *,
    is_backward: bool = False,
) -> Any:
    """Goes through leaves of tokens in order, and through tiles as they are ready.

    Two halves of a power of two of leaves follow each other; between them, the tile of
    both halves. Other numbers of leaves are sums of powers. Every level is a loop, so
    that a program grows with the logarithm of the number of leaves, and holds the
    arrays of its own tokens alone: whatever a compiler copies, a level moves no more
    than all tokens once.

    Args:
      given: A tree of arrays (tokens, ...) that stay.
      state: One of arrays that tiles change before a leaf takes them.
      size: Tokens of a leaf, a divisor of all.
      leaf: Goes through one leaf.
      tile: Goes through one tile.
      is_backward: Whether to go from the last leaf to the first.

    Returns:
      What leaves and tiles make of all tokens, arrays (tokens, ...).
    """
    last = 0 if is_backward else 1

    def power(level, given, state):
        if not level:
            return leaf(given, state)
        given, state = jax.tree.map(
            lambda a: a.reshape(2, a.shape[0] // 2, *a.shape[1:]), (given, state)
        )
        to_come = jax.tree.map(lambda a: a[last], (given, state))

        def body(state, half):
            is_last, mine = half
            done = power(level - 1, mine, state)
            return jax.lax.cond(
                is_last,
                lambda done: (to_come[1], done),
                lambda done: tile(to_come[0], to_come[1], mine, done),
                done,
            )

        first = jax.tree.map(lambda a: a[1 - last], state)
        halves = jnp.arange(2) == last, given
        _, done = jax.lax.scan(body, first, halves, reverse=is_backward)
        return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), done)

    def whole(given, state):
        length = jax.tree.leaves(given)[0].shape[0]
        level = (length // size).bit_length() - 1
        if size << level == length:
            return power(level, given, state)
        slices = slice(size << level), slice(size << level, None)
        begin, end = slices[::-1] if is_backward else slices
        first, (mine, state) = (
            jax.tree.map(lambda a, part=part: a[part], (given, state))
            for part in (begin, end)
        )
        done = whole(*first)
        state, done = tile(mine, state, first[0], done)
        found = [done, whole(mine, state)]
        found = found[::-1] if is_backward else found
        return jax.tree.map(lambda *a: jnp.concatenate(a), *found)

    return whole(given, state)


def block_sizes(count: int) -> tuple[int, int]:
    """Queries and keys of a block of scores.

    >>> block_sizes(16), block_sizes(128)
    ((256, 512), (128, 128))

    Args:
      count: Rows of the batch times heads.
    """
    each = max(SCORES // count, 128 * 128).bit_length() - 1
    keys = min(512, 1 << (each + 1) // 2)
    return (1 << each) // keys, keys


def cut(tree: Any, size: int) -> tuple[Any, Any]:
    """Cuts arrays (tokens, batch, heads, ...) into blocks, heads before tokens.

    Laid out so once, no loop over blocks copies them again.

    Args:
      tree: The arrays.
      size: Tokens of a block.

    Returns:
      All whole blocks, and the rest; None for no block, and for no rest.
    """
    length = jax.tree.leaves(tree)[0].shape[0]
    count, whole, rest = length // size, None, None
    if count:
        blocks = jax.tree.map(
            lambda a: a[: count * size].reshape(count, size, *a.shape[1:]), tree
        )
        whole = jax.vmap(inside)(blocks)
    if length % size:
        rest = inside(jax.tree.map(lambda a: a[count * size :], tree))
    return whole, rest


def joined(blocks: tuple[Any, Any]) -> Any:
    """Joins the blocks of `cut` to arrays (tokens, batch, heads, ...)."""
    whole, rest = blocks
    parts = []
    if whole is not None:
        found = jax.vmap(outside)(whole)
        parts.append(jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), found))
    if rest is not None:
        parts.append(outside(rest))
    return jax.tree.map(lambda *a: jnp.concatenate(a), *parts)


def over_blocks(step: Any, carry: Any, *blocks: tuple[Any, Any]) -> tuple[Any, Any]:
    """Scans over blocks of tokens.

    Args:
      step: `(carry, block of each)` to the carry and a block.
      carry: What it begins with.
      *blocks: Results of `cut`.

    Returns:
      The last carry, and the blocks made.
    """
    whole, rest = zip(*blocks, strict=True)
    made: list[Any] = [None, None]
    if whole[0] is not None:
        carry, made[0] = jax.lax.scan(step, carry, whole)
    if rest[0] is not None:
        carry, made[1] = step(carry, rest)
    return carry, (made[0], made[1])
