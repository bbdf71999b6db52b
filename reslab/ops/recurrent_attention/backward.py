"""The gradient of a layer that attends to what it has put out."""

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
    part,
    tokens_first,
)
from reslab.ops.recurrent_attention.schedule import (
    block_sizes,
    conquer,
    cut,
    joined,
    over_blocks,
)
from reslab.ops.recurrent_attention.tiled import Forward, empty, padded


def gradients(
    layer: Layer,
    scores: Scores,
    params: Any,
    aux: Any,
    stream: Any,
    tokens: dict[str, jax.Array],
    written: Any,
    cotangent: Any,
    size: int,
) -> tuple[Any, Any]:
    """Takes the gradient from input and output alone.

    Attention is computed again, leaf by leaf: its keys are known. Then tokens are gone
    through from the last to the first, since the gradient of an output is known when
    all later tokens have been: a tile adds to the gradients of its keys what its rows
    ask of them. Gradients by parameters are taken at the end, for all tokens at once.

    Reference: Oncescu et al., 2026, https://arxiv.org/abs/2604.21215, Section 2.2.

    Args:
      layer: The layer.
      scores: Its scores.
      params: Its parameters.
      aux: What its functions take besides.
      stream: The stream before the layer.
      tokens: As for `tiled`.
      written: The stream after the layer.
      cotangent: The gradient by it.
      size: Tokens of a leaf.

    Returns:
      The gradients by the parameters and by the stream before the layer.
    """
    length = tokens["index"].shape[1]
    size = min(size, length)
    (stream, written, cotangent), tokens = padded(
        (stream, written, cotangent), tokens, -length % size
    )
    places = tokens["places"]
    read, pull_read = jax.vjp(
        lambda params, stream: layer.read(params, aux, stream, places), params, stream
    )
    pair, pull_pair = jax.vjp(
        lambda params: layer.pair(params, aux, written, places), params
    )
    query, own_key, own_value = (tokens_first(a, 1) for a in read)
    key, value = (tokens_first(a, 1) for a in pair)
    wide = statistics_dtype(query.dtype)
    given: dict[str, Any] = {"query": query, "key": key, "value": value}
    given["marks"] = tuple(tokens_first(tokens[i], 1) for i in ("index", "documents"))
    row = varying_like(empty(scores, query, own_key, own_value), params, stream)
    row = _attended(Forward(layer, scores, params, aux, size), given, row)
    total = row["most"] + jnp.log(row["total"])
    attended = row["sum"] / row["total"][..., None]
    given |= {"attended": attended, "total": total}
    streams = {"before": stream, "after": written, "change": cotangent}
    given |= jax.tree.map(tokens_first, streams | {"places": places})
    zeros = varying_like(jnp.zeros(query.shape, wide), params, stream)
    backward = _Backward(layer, scores, params, aux, size)
    done = conquer(
        given,
        {"key": zeros, "value": zeros},
        size,
        backward.leaf,
        backward.tile,
        is_backward=True,
    )
    weight, by_attended = jnp.exp(scores.own(query, own_key) - total), done["attended"]
    change = jnp.sum(by_attended * (own_value.astype(wide) - attended), axis=-1)
    change = (scores.scale * weight * change)[..., None]
    by_read = (
        done["query"] + change * own_key.astype(wide),
        change * query.astype(wide),
        weight[..., None] * by_attended,
    )

    def like(a, other):
        return jnp.moveaxis(a, 0, 1).astype(other.dtype)

    by_params, by_stream = pull_read(tuple(map(like, by_read, read)))
    (more,) = pull_pair(tuple(map(like, (done["key"], done["value"]), pair)))
    met = like(attended, read[0])
    _, pull = jax.vjp(
        lambda params, stream: layer.write(params, aux, stream, met, places),
        params,
        stream,
    )
    by_write, rest = pull(
        jax.tree.map(lambda a: jnp.moveaxis(a, 0, -2), done["change"])
    )
    by_params = jax.tree.map(lambda *a: sum(a), by_params, more, by_write)
    by_stream = jax.tree.map(jnp.add, by_stream, rest)
    return by_params, part(by_stream, 0, length)


def _attended(forward, given, row):
    """The running softmax of tokens whose keys are known."""

    def leaf(given, row):
        pair = given["key"], given["value"]
        return forward.seen(given, row, given, pair, is_causal=True)

    def tile(given, row, before, done):
        return forward.tile(given, row, before, before)[0], done

    return conquer(given, row, forward.size, leaf, tile)


@dataclasses.dataclass(frozen=True)
class _Backward:
    """Leaves and tiles of a layer, from the last token to the first.

    Given of a token are its "query", "key", "value" and what it "attended" to, (tokens,
    batch, heads, size), the logarithm "total" of its sum of weights, its "marks", the
    streams "before" and "after" the layer and the gradient "change" by that after it;
    its state is the gradient by "key" and "value" of what later tokens have asked.

    Attributes:
      layer, scores, params, aux: As for `gradients`.
      size: Tokens of a leaf.
    """

    layer: Layer
    scores: Scores
    params: Any
    aux: Any
    size: int

    def asked(self, row, by_attended, pair, columns, is_causal=False):
        """Gradients by queries, keys and values; heads before tokens."""
        key, value = (a.astype(by_attended.dtype) for a in pair)
        query = row["query"].astype(by_attended.dtype)
        seen = self.scores(row["query"], pair[0], row["marks"], columns, is_causal)
        weight = jnp.exp(seen - row["total"][..., None])
        change = jnp.einsum("bhnd,bhmd->bhnm", by_attended, value)
        own = jnp.sum(by_attended * row["attended"], axis=-1, keepdims=True)
        change = self.scores.scale * weight * (change - own)
        return (
            jnp.einsum("bhnm,bhmd->bhnd", change, key),
            jnp.einsum("bhnm,bhnd->bhmd", change, query),
            jnp.einsum("bhnm,bhnd->bhmd", weight, by_attended),
        )

    def tile(self, given, state, after, done):
        """Adds to the gradients of some keys what later rows ask of them."""
        row = {name: after[name] for name in ("query", "attended", "total", "marks")}
        some, count = block_sizes(after["total"][0].size)

        columns = cut(((given["key"], given["value"]), given["marks"]), count)

        def rows(state, block):
            ((row, by_attended, by_query),) = block

            def keys(by_query, block):
                (pair, columns), state = block
                more, *new = self.asked(row, by_attended, pair, columns)
                return by_query + more, jax.tree.map(jnp.add, state, (*new,))

            by_query, state = over_blocks(keys, by_query, columns, state)
            return state, by_query

        state, by_query = over_blocks(
            rows,
            cut((state["key"], state["value"]), count),
            cut((row, done["attended"], done["query"]), some),
        )
        state = dict(zip(("key", "value"), joined(state), strict=True))
        return state, done | {"query": joined(by_query)}

    def leaf(self, given, state):
        """Goes through the tokens of a leaf, from the last to the first."""
        fixed, columns = inside(((given["key"], given["value"]), given["marks"]))

        def step(by_pair, token):
            t, token = token
            names = "query", "attended", "total", "marks"
            row = {name: token[name][None] for name in names[:-1]}
            row = inside(row | {"marks": tuple(a[None] for a in token["marks"])})
            before, after, by_output, places = (
                jax.tree.map(lambda a: a[..., None, :], token[name])
                for name in ("before", "after", "change", "places")
            )
            dtype = row["query"].dtype

            def made(written):
                return self.layer.pair(self.params, self.aux, written, places)

            def wrote(attended):
                arguments = self.params, self.aux, before, attended, places
                return self.layer.write(*arguments)

            mine = part(by_pair, t, 1)
            _, pull = jax.vjp(made, after)
            (more,) = pull(tuple(heads_first(a).astype(dtype) for a in mine))
            by_output = jax.tree.map(jnp.add, by_output, more)
            _, pull = jax.vjp(wrote, heads_first(row["attended"]).astype(dtype))
            by_attended = heads_first(pull(by_output)[0]).astype(mine[0].dtype)
            by_query, *new = self.asked(row, by_attended, fixed, columns, True)
            by_pair = jax.tree.map(jnp.add, by_pair, tuple(new))
            by_output = jax.tree.map(lambda a: a[..., 0, :], by_output)
            return by_pair, (by_query[:, :, 0], by_attended[:, :, 0], by_output)

        by_pair = inside((state["key"], state["value"]))
        steps = jnp.arange(self.size, dtype=jnp.int32)
        by_pair, found = jax.lax.scan(step, by_pair, (steps, given), reverse=True)
        by_query, by_attended, by_output = found
        key, value = outside(by_pair)
        return {
            "key": key,
            "value": value,
            "query": by_query,
            "attended": by_attended,
            "change": by_output,
        }
