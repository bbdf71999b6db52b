"""Softmax attention: one function, several implementations."""

from typing import Any

import jax
import jax.numpy as jnp

from reslab.core.errors import ReslabError, nearest
from reslab.core.platform import platform
from reslab.ops.attention.reference import reference_attention, visibility
from reslab.ops.attention.sequence import divided_attention, is_divided
from reslab.ops.attention.splash import obstacle, splash

IMPLEMENTATIONS = ("auto", "reference", "xla", "splash")


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    segments: jax.Array | None = None,
    query_offset: int | jax.Array = 0,
    query_index: jax.Array | None = None,
    is_causal: bool = True,
    window: int | None = None,
    first_key: int | jax.Array = 0,
    softcap: float | None = None,
    scale: float | None = None,
    slopes: jax.Array | None = None,
    dropout: float = 0.0,
    dropout_key: jax.Array | None = None,
    implementation: str = "auto",
) -> jax.Array:
    """Averages values, weighted by the softmax of query-key products.

        c[i, j] = scale * query[i] . key[j]          (* softcap tanh(./softcap))
        y[i]    = sum_j softmax_j(c[i, j]) value[j]

    over the keys j that query i may see, where p = i + query_offset is the
    query's own place among the keys:

        j <= p                        if causal
        j > p - window                if there is a window
        j >= first_key
        segments[i] == segments[j]    if there are segments

    Query head h reads key-value head h // (heads // kv_heads). The softmax is
    taken in float32, or in float64 for float64 inputs.

    Where the mesh in context has an axis `sequence`, each device attends from its own
    tokens to all keys of their rows, which are gathered for it.

    Reference: Vaswani et al., 2017, https://arxiv.org/abs/1706.03762, Eq. 1;
    grouped queries: Ainslie et al., 2023, https://arxiv.org/abs/2305.13245;
    softcap: Gemma Team, 2024, https://arxiv.org/abs/2408.00118, Section 2.

    Args:
      query: Shape (batch, length, heads, head_dim).
      key: Shape (batch, key_length, kv_heads, head_dim).
      value: The same shape as `key`, but for its last axis, which may be smaller.
      segments: Document of each token (batch, length), integers; only where
        queries and keys are the same tokens.
      query_offset: Index of the first query among the keys; an int, or an int32
        scalar, which may be traced.
        While decoding, the number of tokens that are in the cache already.
      query_index: Index of each query among the keys, int32 (batch, length), where
        rows differ; instead of `query_offset`.
      is_causal: Whether later keys are hidden.
      window: Number of latest keys visible, the query's own included.
      first_key: Index of the first key that may be seen; an int, or int32, a scalar
        or one for each row, which may be traced. Keys before it are an empty part of
        a cache.
      softcap: Bound of the scores.
      scale: Factor on the scores; head_dim ** -0.5 if None.
      slopes: Subtracted from the scores of each head (heads,) for every place between
        query and key (Press et al., 2021, https://arxiv.org/abs/2108.12409).
      dropout: Rate at which entries of the softmax are dropped, and the others scaled
        up, where there is a `dropout_key`.
      dropout_key: Random key; None drops nothing.
      implementation: "reference" is plain jnp and does everything; "xla" is
        `jax.nn.dot_product_attention`; "splash" is JAX's TPU kernel; "auto"
        takes the fastest that does what is asked.

    Returns:
      Dtype and shape of `query`, but for the last axis, as in `value`.

    Raises:
      ReslabError: If shapes do not fit, or if the chosen implementation
        cannot do what is asked.

    >>> x = jnp.eye(2)[None, :, None]
    >>> [round(float(v), 3) for v in attention(x, x, x, scale=1.0)[0, 1, 0]]
    [0.269, 0.731]
    """
    _check(query, key, value, segments, window)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    mask: Any = {"is_causal": is_causal, "window": window, "segments": segments}
    hides_keys = not isinstance(first_key, int) or first_key > 0
    hides_keys |= query_index is not None
    drops = dropout > 0 and dropout_key is not None
    obstacles = {
        "reference": None,
        "xla": "dropout"
        if drops
        else "slopes"
        if slopes is not None
        else _xla_obstacle(query, softcap),
        "splash": "dropout"
        if drops
        else "slopes"
        if slopes is not None
        else "first_key"
        if hides_keys
        else obstacle(query, key, query_offset=query_offset),
    }
    if implementation == "auto":
        implementation = _choose(query, key, obstacles)
    if implementation not in obstacles:
        raise ReslabError(
            f"attention implementation {implementation!r}",
            hint=nearest(implementation, IMPLEMENTATIONS),
        )
    if obstacles[implementation]:
        raise ReslabError(
            f"attention implementation {implementation!r} does not support "
            f"{obstacles[implementation]}",
            hint="implementation='auto'",
        )
    size, width = value.shape[-1], key.shape[-1]
    if implementation != "reference" and size < width:
        value = jnp.pad(value, ((0, 0), (0, 0), (0, 0), (0, width - size)))
    if implementation == "splash":
        y = splash(query, key, value, softcap=softcap, scale=scale, **mask)
        return y[..., :size] if size < width else y
    mask["first_key"] = first_key
    mask["query_index"] = query_index
    if implementation == "xla":
        y = _xla(query, key, value, query_offset, scale=scale, **mask)
        return y[..., :size] if size < width else y
    mask |= {"softcap": softcap, "scale": scale}
    if slopes is not None:
        mask["slopes"] = slopes
    if is_divided(query, key, query_offset, hides_keys):
        if drops or slopes is not None:
            raise ReslabError(
                "attention: dropout" if drops else "attention: slopes",
                expected="none on a mesh that divides the tokens of a row",
                got=str(dropout) if drops else "some",
            )
        del mask["query_index"]  # Not supported on this path.
        return divided_attention(query, key, value, **mask)
    if drops:
        mask |= {"dropout": dropout, "dropout_key": dropout_key}
    return reference_attention(query, key, value, query_offset, **mask)


def _choose(query, key, obstacles):
    if platform() == "tpu" and not obstacles["splash"]:
        return "splash"
    if is_divided(query, key, 0, False):
        return "reference"  # The other implementation does not support it.
    # On a CPU the reference takes 0.75 of the time of "xla" (forward and
    # backward, float32, batch 16, length 256, 4 heads of 64, two cores), except
    # for a single query of grouped heads: there its copies of the keys weigh
    # more than the scores, and it takes 1.5 to 2 times as long.
    copies_weigh = query.shape[1] == 1 and key.shape[2] < query.shape[2]
    if obstacles["xla"] or (platform() == "cpu" and not copies_weigh):
        return "reference"
    return "xla"


def _xla_obstacle(query: jax.Array, softcap: float | None) -> str | None:
    if softcap is not None:
        return "softcap"
    if query.dtype == jnp.float64:
        return "float64 (its softmax is float32)"
    return None


def _xla(
    query,
    key,
    value,
    query_offset,
    *,
    scale,
    segments,
    is_causal,
    window,
    first_key,
    query_index,
):
    """Builds a mask only where JAX has no word for it."""
    mask = {}
    is_whole = all(isinstance(n, int) and n == 0 for n in (query_offset, first_key))
    is_whole &= query_index is None
    if segments is None and is_whole:
        mask["is_causal"] = is_causal
        if window is not None:
            later = 0 if is_causal else key.shape[1]
            mask["local_window_size"] = (window - 1, later)
    else:
        mask["mask"] = visibility(
            query.shape[1],
            key.shape[1],
            segments=segments,
            query_offset=query_offset,
            query_index=query_index,
            is_causal=is_causal,
            window=window,
            first_key=first_key,
        )
    # JAX promotes bfloat16 scores inside, which strict promotion forbids.
    with jax.numpy_dtype_promotion("standard"):
        return jax.nn.dot_product_attention(query, key, value, scale=scale, **mask)


def _check(query, key, value, segments, window):
    def refuse(name, expected, got):
        raise ReslabError(f"attention: {name}", expected=expected, got=str(got))

    if query.ndim != 4:
        refuse("query", "(batch, length, heads, head_dim)", query.shape)
    batch, length, heads, head_dim = query.shape
    fits = key.ndim == 4 and key.shape[0] == batch and key.shape[3] == head_dim
    if not fits or heads % key.shape[2]:
        refuse(
            "key",
            f"({batch}, key_length, a divisor of {heads}, {head_dim})",
            key.shape,
        )
    if value.shape[:3] != key.shape[:3] or not value.shape[3:] <= key.shape[3:]:
        refuse("value", f"the shape of key, {key.shape}, or narrower", value.shape)
    if not query.dtype == key.dtype == value.dtype:
        refuse("dtypes", "one", f"{query.dtype}, {key.dtype}, {value.dtype}")
    if segments is not None and segments.shape != (batch, length):
        refuse("segments", f"shape {(batch, length)}", segments.shape)
    if segments is not None and key.shape[1] != length:
        refuse("segments", f"equally many keys and queries ({length})", key.shape[1])
    if window is not None and window < 1:
        refuse("window", "at least 1", window)
