"""Attention in plain jnp: the definition, and the mask of all implementations."""

import functools

import jax
import jax.numpy as jnp

from reslab.core.precision import scaled, statistics_dtype


def visibility(
    length: int,
    key_length: int,
    *,
    segments: jax.Array | None = None,
    key_segments: jax.Array | None = None,
    query_offset: int | jax.Array = 0,
    query_index: jax.Array | None = None,
    is_causal: bool = True,
    window: int | None = None,
    first_key: int | jax.Array = 0,
) -> jax.Array | None:
    """Says which keys each query may see.

    Args:
      length: Number of queries.
      key_length: Number of keys.
      segments: Document of each query (batch, length).
      key_segments: Segment of each key (batch, key_length); `segments` if None.
      query_offset: Index of the first query among the keys.
      query_index: Index of each query among the keys (batch, length), instead.
      is_causal: Whether later keys are hidden.
      window: Number of latest keys visible, the query's own included.
      first_key: Index of the first visible key, for all rows or each (batch,).

    Returns:
      Booleans (1 or batch, 1, length, key_length), or None if all is visible.

    >>> visibility(3, 3, window=2)[0, 0].astype(int).tolist()
    [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    """
    rows = jnp.arange(length, dtype=jnp.int32)[None] + query_offset
    if query_index is not None:
        rows = query_index
    rows = rows[:, None, :, None]
    columns = jnp.arange(key_length, dtype=jnp.int32)[None, None, None, :]
    conditions = []
    if is_causal:
        conditions.append(columns <= rows)
    if window is not None:
        conditions.append(columns > rows - window)
    if not isinstance(first_key, int) or first_key > 0:
        first = jnp.asarray(first_key).reshape(-1, 1, 1, 1)
        conditions.append(columns >= first)
    if segments is not None:
        others = segments if key_segments is None else key_segments
        conditions.append(segments[:, None, :, None] == others[:, None, None, :])
    return functools.reduce(jnp.logical_and, conditions) if conditions else None


def reference_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    query_offset: int | jax.Array,
    *,
    query_index: jax.Array | None = None,
    segments: jax.Array | None,
    key_segments: jax.Array | None = None,
    is_causal: bool,
    window: int | None,
    first_key: int | jax.Array,
    softcap: float | None,
    scale: float,
    slopes: jax.Array | None = None,
    dropout: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Computes attention with explicit scores; see `api.attention`."""
    length, key_length = query.shape[1], key.shape[1]
    wide = statistics_dtype(query.dtype)

    # Heads first, and one key-value head per query head: products of four
    # axes run faster than of five, and the copies are small beside the scores.
    group = query.shape[2] // key.shape[2]
    query, key, value = (
        jnp.swapaxes(x, 1, 2)
        for x in (query, jnp.repeat(key, group, 2), jnp.repeat(value, group, 2))
    )
    scores = jnp.einsum(
        "bhld,bhsd->bhls", scaled(query, scale), key, preferred_element_type=wide
    )
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    if slopes is not None:
        rows = jnp.arange(length, dtype=jnp.int32)[None] + query_offset
        rows = rows if query_index is None else query_index
        columns = jnp.arange(key_length, dtype=jnp.int32)[None, None, None]
        apart = (columns - rows[:, None, :, None]).astype(wide)
        scores = scores + slopes.astype(wide)[None, :, None, None] * apart
    visible = visibility(
        length,
        key_length,
        segments=segments,
        key_segments=key_segments,
        query_offset=query_offset,
        query_index=query_index,
        is_causal=is_causal,
        window=window,
        first_key=first_key,
    )
    if visible is not None:
        # Large but finite: infinity minus infinity is NaN.
        hidden = 0.7 * float(jnp.finfo(wide).min)
        scores = scores + jnp.where(visible, 0.0, hidden).astype(wide)
    weights = jax.nn.softmax(scores, axis=-1)
    if dropout_key is not None:
        is_kept = jax.random.bernoulli(dropout_key, 1.0 - dropout, weights.shape)
        weights = jnp.where(is_kept, weights / (1.0 - dropout), 0.0)
    weights = weights.astype(value.dtype)
    return jnp.swapaxes(jnp.einsum("bhls,bhsd->bhld", weights, value), 1, 2)
