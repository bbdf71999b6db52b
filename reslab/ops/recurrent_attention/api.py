"""Attention to what a layer has put out for earlier tokens."""

from typing import Any

import jax
import jax.numpy as jnp

from reslab.core.errors import ReslabError, nearest
from reslab.core.varying import varying_like
from reslab.ops.recurrent_attention.backward import gradients
from reslab.ops.recurrent_attention.layer import Layer, Scores
from reslab.ops.recurrent_attention.reference import naive
from reslab.ops.recurrent_attention.tiled import tiled

IMPLEMENTATIONS = ("tiles", "naive")


def recurrent_attention(
    layer: Layer,
    params: Any,
    aux: Any,
    stream: Any,
    *,
    places: jax.Array,
    scale: float,
    slopes: jax.Array | None = None,
    segments: jax.Array | None = None,
    size: int = 64,
    implementation: str = "tiles",
) -> Any:
    """Applies a layer whose keys and values come from its own output.

        a[t] = softmax([q[t] . k[j] for j < t, q[t] . k'[t]]) . [v[j] for j < t, v'[t]]
        y[t] = write(x[t], a[t]),   k[t], v[t] = pair(y[t])
        q[t], k'[t], v'[t] = read(x[t])

    Tokens wait for each other, but all queries are known at once. "tiles" reads each
    key for many rows: length * log(length) of memory traffic instead of the square,
    while scores fit in fast memory, by the same operations, with a gradient that keeps
    input and output alone.

    Reference: Oncescu et al., 2026, https://arxiv.org/abs/2604.21215, Section 2.

    Args:
      layer: The layer, as pure functions.
      params: Its parameters, which have a gradient.
      aux: A tree of arrays that its functions take besides, without a gradient.
      stream: The stream before the layer, arrays (..., batch, length, embed).
      places: Position of each token (batch, length), for the layer's functions.
      scale: Factor on the scores.
      slopes: Fall of scores with distance (heads,), or None.
      segments: Document of each token (batch, length); None is one.
      size: Tokens that go one by one before a tile reads their keys.
      implementation: "tiles" or "naive", a scan over tokens: the definition.

    Returns:
      The stream after the layer.

    Raises:
      ReslabError: If the implementation is unknown.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ReslabError(
            f"recurrent_attention implementation {implementation!r}",
            hint=nearest(implementation, IMPLEMENTATIONS),
        )
    index = jnp.arange(places.shape[1], dtype=jnp.int32)
    tokens = {
        "index": jnp.broadcast_to(index, places.shape),
        "documents": jnp.ones_like(places) if segments is None else segments,
        "places": places[..., None],
    }
    # The gradient by parameters that are the same on all devices is summed outside.
    params = varying_like(params, stream)
    if implementation == "naive":
        return naive(layer, Scores(scale, slopes), params, aux, stream, tokens)

    @jax.custom_vjp
    def run(params, stream, aux, tokens, slopes):
        scores = Scores(scale, slopes)
        return tiled(layer, scores, params, aux, stream, tokens, size)[0]

    def forward(params, stream, aux, tokens, slopes):
        written = run(params, stream, aux, tokens, slopes)
        return written, (params, stream, aux, tokens, slopes, written)

    def backward(saved, cotangent):
        params, stream, aux, tokens, slopes, written = saved
        found = gradients(
            layer,
            Scores(scale, slopes),
            params,
            aux,
            stream,
            tokens,
            written,
            cotangent,
            size,
        )
        return *found, None, None, None

    run.defvjp(forward, backward)
    return run(params, stream, aux, tokens, slopes)
