"""Rows of different lengths in one batch, for mixers that keep a state."""

import jax
import jax.numpy as jnp


def real_tokens(segments: jax.Array | None) -> jax.Array | None:
    """Marks the tokens that a state takes in (batch, length); None marks all.

    Args:
      segments: Document of each token; 0 is padding, wherever it is in the row.
    """
    return None if segments is None else segments > 0


def starts(segments: jax.Array) -> jax.Array:
    """Marks the first tokens of documents that follow another one in their row.

    Args:
      segments: Document of each token (batch, length).

    Returns:
      Booleans (batch, length); false for the first token of a row.
    """
    before = jnp.pad(segments, ((0, 0), (1, 0)), mode="edge")[:, :-1]
    return before != segments


def ranks(is_real: jax.Array | None, batch: int, length: int) -> jax.Array:
    """Number of each token among the real ones of its row, int32 (batch, length).

    Padding has the number of the real token before it, or -1.
    """
    if is_real is None:
        row = jnp.arange(length, dtype=jnp.int32)
        return jnp.broadcast_to(row, (batch, length))
    return jnp.cumsum(is_real, axis=1, dtype=jnp.int32) - 1


def append(cache: jax.Array, new: jax.Array, is_real: jax.Array | None) -> jax.Array:
    """Puts the real tokens of each row behind its cache, and padding before it.

    Args:
      cache: The latest tokens, (batch, slots, ...).
      new: New tokens (batch, length, ...).
      is_real: Which of them are real; None is all.

    Returns:
      Both, (batch, slots + length, ...), the latest real token last.
    """
    joined = jnp.concatenate([cache, new], axis=1)
    if is_real is None:
        return joined
    is_kept = jnp.pad(is_real, ((0, 0), (cache.shape[1], 0)), constant_values=True)
    order = jnp.argsort(is_kept, axis=1, stable=True)
    return _taken(joined, order)


def restore_order(y: jax.Array, is_real: jax.Array | None) -> jax.Array:
    """Takes the last rows of what `append` returned back to the order of the tokens.

    Args:
      y: Values of the last `length` entries (batch, length, ...).
      is_real: Which tokens are real (batch, length); None is all.
    """
    if is_real is None:
        return y
    length = y.shape[1]
    rank = ranks(is_real, *y.shape[:2])
    padding = length - 1 - rank[:, -1:]
    return _taken(y, jnp.clip(padding + rank, 0, length - 1))


def _taken(x: jax.Array, order: jax.Array) -> jax.Array:
    order = order.reshape(*order.shape, *(1,) * (x.ndim - 2))
    return jnp.take_along_axis(x, order, axis=1)
