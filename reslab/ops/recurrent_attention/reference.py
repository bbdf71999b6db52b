"""Attention to what a layer has put out, token by token: the definition."""

from typing import Any

import jax
import jax.numpy as jnp

from reslab.core.precision import statistics_dtype
from reslab.core.varying import varying_like
from reslab.ops.recurrent_attention.layer import (
    Layer,
    Scores,
    heads_first,
    marks,
    part,
    put,
)

Tokens = dict[str, jax.Array]


def naive(
    layer: Layer, scores: Scores, params: Any, aux: Any, stream: Any, tokens: Tokens
) -> Any:
    """Computes the layer with a scan over tokens; see `api.recurrent_attention`."""
    query, key, value = layer.read(params, aux, stream, tokens["places"])
    length, wide = query.shape[1], statistics_dtype(query.dtype)
    columns = tokens["index"], tokens["documents"]

    def step(seen, t):
        here, places = part(stream, t, 1), part(tokens["places"], t, 1)
        at = [jax.lax.dynamic_slice_in_dim(a, t, 1, 1) for a in (query, key, value)]
        own_query, own_key, own_value = map(heads_first, at)
        rows = marks(columns, t, 1)
        past = scores(own_query, seen[0], rows, columns, is_causal=True)
        joined = [past, scores.own(own_query, own_key)[..., None]]
        weights = jax.nn.softmax(jnp.concatenate(joined, axis=-1), axis=-1)
        attended = jnp.einsum(
            "bhnm,bhmd->bhnd", weights[..., :-1], seen[1].astype(wide)
        )
        attended = attended + weights[..., -1:] * own_value.astype(wide)
        attended = heads_first(attended).astype(query.dtype)
        written = layer.write(params, aux, here, attended, places)
        pair = map(heads_first, layer.pair(params, aux, written, places))
        return put(seen, tuple(pair), t), written

    empty = (jnp.zeros_like(heads_first(key)), jnp.zeros_like(heads_first(value)))
    empty = varying_like(empty, stream, params)
    _, written = jax.lax.scan(step, empty, jnp.arange(length))
    # (tokens, ..., 1, features) to (..., tokens, features).
    return jax.tree.map(lambda a: jnp.moveaxis(a[..., 0, :], 0, -2), written)
