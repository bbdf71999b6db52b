"""Attention to what a layer has put out, in tiles of powers of two tokens."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from reslab.core.precision import statistics_dtype
from reslab.core.varying import varying_like
from reslab.ops.recurrent_attention.layer import (
    Layer,
    Scores,
    heads_first,
    inside,
    outside,
    put,
    tokens_first,
)
from reslab.ops.recurrent_attention.schedule import (
    block_sizes,
    conquer,
    cut,
    joined,
    over_blocks,
)


def tiled(
    layer: Layer,
    scores: Scores,
    params: Any,
    aux: Any,
    stream: Any,
    tokens: dict[str, jax.Array],
    size: int,
    past: Any = None,
) -> tuple[Any, tuple[jax.Array, jax.Array]]:
    """Computes the layer in tiles; see `api.recurrent_attention`.

    Each row keeps a running softmax: the sum of weighted values, its largest score,
    and the sum of weights, in the dtype of statistics. A tile adds the keys of tokens
    that are done to the rows of later tokens; within a leaf of `size` tokens they go
    one by one.

    Args:
      layer: The layer.
      scores: Its scores.
      params: Its parameters.
      aux: What its functions take besides.
      stream: The stream before the layer.
      tokens: "index", "documents" (batch, length) and "places" (batch, length, 1).
      size: Tokens of a leaf.
      past: Keys and values (batch, slots, heads, size) of earlier tokens, and their
        marks; or None.

    Returns:
      The stream after the layer, and the pairs of all tokens
      (batch, length, heads, size).
    """
    length = tokens["index"].shape[1]
    size = min(size, length)
    stream, tokens = padded(stream, tokens, -length % size)
    read = layer.read(params, aux, stream, tokens["places"])
    query, key, value = (tokens_first(a, 1) for a in read)
    place = tuple(tokens_first(tokens[name], 1) for name in ("index", "documents"))
    given = {
        "query": query,
        "stream": jax.tree.map(tokens_first, stream),
        "places": tokens_first(tokens["places"]),
        "marks": place,
    }
    state = varying_like(empty(scores, query, key, value), params, stream)
    forward = Forward(layer, scores, params, aux, size)
    if past is not None:
        (key, value), seen = jax.tree.map(lambda a: tokens_first(a, 1), past)
        state = forward.seen(given, state, {"marks": seen}, (key, value))
    done = conquer(given, state, size, forward.leaf, forward.tile)
    done = jax.tree.map(lambda a: a[:length], done)
    key, value = (jnp.moveaxis(done[name], 0, 1) for name in ("key", "value"))
    return jax.tree.map(lambda a: jnp.moveaxis(a, 0, -2), done["written"]), (key, value)


def empty(scores: Scores, query: Any, key: Any, value: Any) -> dict[str, jax.Array]:
    """A running softmax of tokens that have met themselves alone."""
    wide = statistics_dtype(query.dtype)
    own = scores.own(query, key)
    return {"sum": value.astype(wide), "most": own, "total": jnp.ones_like(own)}


@dataclasses.dataclass(frozen=True)
class Forward:
    """Leaves and tiles of a layer.

    Given of a token are its "query" (tokens, batch, heads, size), its "stream" before
    the layer, its position "places", and the "marks" of the token, (tokens, batch)
    each; its state is a running softmax of the tokens that it has seen.

    Attributes:
      layer, scores, params, aux: As for `tiled`.
      size: Tokens of a leaf.
    """

    layer: Layer
    scores: Scores
    params: Any
    aux: Any
    size: int

    def added(self, row, query, pair, rows, columns, is_causal=False):
        """Rows with more keys in their softmax; heads before tokens."""
        key, value = pair
        seen = self.scores(query, key, rows, columns, is_causal)
        most = jnp.maximum(row["most"], jnp.max(seen, axis=-1))
        weight, keep = jnp.exp(seen - most[..., None]), jnp.exp(row["most"] - most)
        read = jnp.einsum("bhnm,bhmd->bhnd", weight, value.astype(seen.dtype))
        return {
            "sum": keep[..., None] * row["sum"] + read,
            "most": most,
            "total": keep * row["total"] + jnp.sum(weight, axis=-1),
        }

    def seen(self, given, state, before, pair, is_causal=False):
        """Rows that have seen the keys of some tokens, by blocks of scores."""
        some, more = block_sizes(state["total"][0].size)
        columns = cut((pair, before["marks"]), more)

        def rows(_, block):
            (((query, marks), row),) = block

            def keys(row, block):
                ((pair, columns),) = block
                row = self.added(row, query, pair, marks, columns, is_causal)
                return row, None

            return None, over_blocks(keys, row, columns)[0]

        asked = given["query"], given["marks"]
        return joined(over_blocks(rows, None, cut((asked, state), some))[1])

    def tile(self, given, state, before, done):
        """Adds the keys of tokens that are done to the rows of later ones."""
        return self.seen(given, state, before, (done["key"], done["value"])), done

    def leaf(self, given, state):
        """Goes through the tokens of a leaf."""
        columns = inside(given["marks"])

        def step(pair, token):
            t, given, row = token
            one = given["query"], row, given["marks"]
            query, row, rows = inside(jax.tree.map(lambda a: a[None], one))
            row = self.added(row, query, pair, rows, columns, is_causal=True)
            attended = heads_first(row["sum"] / row["total"][..., None])
            attended = attended.astype(query.dtype)
            here, places = (
                jax.tree.map(lambda a: a[..., None, :], given[name])
                for name in ("stream", "places")
            )
            written = self.layer.write(self.params, self.aux, here, attended, places)
            made = self.layer.pair(self.params, self.aux, written, places)
            written = jax.tree.map(lambda a: a[..., 0, :], written)
            return put(pair, tuple(map(heads_first, made)), t), written

        start = (jnp.zeros_like(inside(given["query"])),) * 2
        steps = jnp.arange(self.size, dtype=jnp.int32)
        pair, written = jax.lax.scan(step, start, (steps, given, state))
        key, value = outside(pair)
        return {"key": key, "value": value, "written": written}


def padded(
    stream: Any, tokens: dict[str, jax.Array], count: int
) -> tuple[Any, dict[str, jax.Array]]:
    """Adds tokens behind all others, which nothing sees."""
    if not count:
        return stream, tokens

    def more(a):
        return jnp.pad(a, [*[(0, 0)] * (a.ndim - 2), (0, count), (0, 0)])

    width = ((0, 0), (0, count))
    tokens = {
        "places": more(tokens["places"]),
        # Not later than each other, and in no document.
        "index": jnp.pad(tokens["index"], width, mode="edge"),
        "documents": jnp.pad(tokens["documents"], width, constant_values=-1),
    }
    return jax.tree.map(more, stream), tokens
