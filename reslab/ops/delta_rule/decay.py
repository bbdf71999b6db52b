"""Decay inside a chunk: between two of its tokens, from its start, to its end.

Arrays are (..., size, key_dim), and log decays (..., size) or (..., size, key_dim). No
exponent is positive, so that nothing overflows, and decays of any strength, minus
infinity as well, leave those of other tokens exact to rounding.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from reslab.ops.decays import running_sums

Product = Callable[..., jax.Array]
# Tokens whose pairs are multiplied as one matrix, and masked; from there on, halves.
LEAF = 16


@dataclasses.dataclass(frozen=True)
class Decay:
    """The decay inside chunks, before documents are told apart.

    Attributes:
      from_start: Since before the first token, (..., size, 1 or key_dim).
      to_end: Until after the last token, likewise.
      pairs: Computes products of rows and keys, decayed from the key to the row, with
        anything above the diagonal: from several arrays of rows, and keys, to as many
        arrays (..., size, size).
    """

    from_start: jax.Array
    to_end: jax.Array
    pairs: Callable[[Sequence[jax.Array], jax.Array, Product], Sequence[jax.Array]]


def decay_of(log_decay: jax.Array | None, beta: jax.Array) -> Decay:
    """Returns the decay of chunks whose strengths `beta` are (..., size)."""
    if log_decay is None:
        one = jnp.ones_like(beta)[..., None]
        return Decay(one, one, _undecayed)
    if log_decay.ndim == beta.ndim:
        return _of_heads(log_decay)
    return _of_channels(log_decay)


def _undecayed(rows, key, product):
    return [product("...ik,...jk->...ij", one, key) for one in rows]


def _of_heads(log_decay: jax.Array) -> Decay:
    size = log_decay.shape[-1]
    coarse, fine = running_sums(log_decay)
    # A token itself has not decayed: a constant, so that no rounding error of it is in
    # the gradient.
    to_end = (coarse[..., -1:] - coarse) + (fine[..., -1:] - fine)
    to_end = jnp.where(jnp.arange(size) < size - 1, to_end, 0)
    apart = (coarse[..., :, None] - coarse[..., None, :]) + (
        fine[..., :, None] - fine[..., None, :]
    )
    row, column = jnp.arange(size)[:, None], jnp.arange(size)[None]
    apart = jnp.where(row > column, apart, jnp.where(row == column, 0.0, -jnp.inf))
    decay = jnp.exp(apart.astype(log_decay.dtype))

    def pairs(rows, key, product):
        return [pairs * decay for pairs in _undecayed(rows, key, product)]

    return Decay(jnp.exp(coarse + fine)[..., None], jnp.exp(to_end)[..., None], pairs)


def _of_channels(log_decay: jax.Array) -> Decay:
    from_start = jnp.cumsum(log_decay, axis=-2)
    later = jnp.pad(
        log_decay[..., 1:, :], [(0, 0)] * (log_decay.ndim - 2) + [(0, 1), (0, 0)]
    )
    to_end = jnp.flip(jnp.cumsum(jnp.flip(later, -2), axis=-2), -2)

    def pairs(rows, key, product):
        run = functools.partial(_channel_pairs, product)
        # Every array inside is as large as the keys, once for each level.
        return jax.checkpoint(run)(rows, key, log_decay)

    return Decay(jnp.exp(from_start), jnp.exp(to_end), pairs)


def _channel_pairs(
    product: Product,
    rows: Sequence[jax.Array],
    key: jax.Array,
    log_decay: jax.Array,
) -> Sequence[jax.Array]:
    """Sums rows[i] . (exp(g[j + 1] + ... + g[i]) * key[j]), for j <= i; see `Decay`.

    The decay of a pair does not factor into one of i and one of j, except about a
    reference between them: the first row of the right half of the smallest block, of a
    size that is a power of two, that holds both. Log decays are summed up to it and
    from it; no sum is subtracted from another.
    """
    size = key.shape[-2]
    leaf = min(LEAF, size)
    # Sums over each block of `width` up to a token, with it, and after it.
    until, after, width = log_decay, jnp.zeros_like(log_decay), 1
    found = [_own(_blocks(one, leaf), _blocks(key, leaf)) for one in rows]
    while width < size:
        left, since = jnp.exp(after) * key, jnp.exp(until)
        grown = _within if width < leaf else _joined
        found = [
            grown(pairs, since * one, left, width, product)
            for pairs, one in zip(found, rows, strict=True)
        ]
        until, after = _doubled(until, after, width)
        width *= 2
    return [pairs[..., 0, :, :] for pairs in found]


def _blocks(x: jax.Array, width: int) -> jax.Array:
    return x.reshape(*x.shape[:-2], -1, width, x.shape[-1])


def _places(shape):
    return (jax.lax.broadcasted_iota(jnp.int32, shape, len(shape) - n) for n in (2, 1))


def _own(rows, key):
    """Products of each row and its own key, on diagonals of leaves."""
    own = jnp.sum(rows * key, axis=-1)[..., None]
    row, column = _places((*own.shape[:-1], own.shape[-2]))
    return jnp.where(row == column, own, 0)


def _within(found, right, left, width, product):
    """Adds pairs of right and left halves within leaves."""
    leaf = found.shape[-1]
    row, column = _places(found.shape)
    is_pair = (row // width == column // width + 1) & (row // width % 2 == 1)
    pairs = product("...ik,...jk->...ij", _blocks(right, leaf), _blocks(left, leaf))
    return found + jnp.where(is_pair, pairs, 0)


def _joined(found, right, left, width, product):
    """Joins blocks two by two, with pairs of the right and the left one between."""
    between = product(
        "...ik,...jk->...ij",
        _blocks(right, width)[..., 1::2, :, :],
        _blocks(left, width)[..., ::2, :, :],
    )
    above = jnp.concatenate([found[..., ::2, :, :], jnp.zeros_like(between)], axis=-1)
    below = jnp.concatenate([between, found[..., 1::2, :, :]], axis=-1)
    return jnp.concatenate([above, below], axis=-2)


def _doubled(until, after, width):
    """Takes sums over blocks of `width` to those over blocks twice as large."""
    shape = until.shape
    halves = (*shape[:-2], -1, 2, width, shape[-1])
    until, after = until.reshape(halves), after.reshape(halves)
    left, right = (until[..., half, -1:, :] for half in (0, 1))
    until = jnp.stack([until[..., 0, :, :], until[..., 1, :, :] + left], axis=-3)
    after = jnp.stack([after[..., 0, :, :] + right, after[..., 1, :, :]], axis=-3)
    return until.reshape(shape), after.reshape(shape)
