"""The loop over layers that can be undone: it keeps the last stream alone."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.types import Shared, Stream


def reversible_scan(
    blocks: Sequence[Callable[..., nn.Module]],
    params: Any,
    stream: Stream,
    layers: jax.Array,
    shared: Shared,
    positions: jax.Array,
    segments: jax.Array | None,
    *,
    is_unrolled: bool,
) -> Stream:
    """Applies periods of reversible blocks, as `nn.scan` would.

    The forward pass keeps its end and the parameters. The backward pass goes through
    the layers in the other order, each giving its gradients and the stream before it
    by its method `backward`. So what is kept does not grow with depth.

    Args:
      blocks: Factories of the blocks of a period.
      params: Parameters of all periods, stacked on axis 0, `block_<i>` for each.
      stream: The stream before the first layer.
      layers: Index of the first layer of every period.
      shared: Depth memory, which is only read.
      positions: Position of each token in its document (batch, length).
      segments: Document of each token, or None.
      is_unrolled: Whether the layers are laid out one after the other.

    Returns:
      The stream after the last layer.
    """
    modules = [block(parent=None) for block in blocks]
    unroll = layers.shape[0] if is_unrolled else 1

    def run(params, stream, layers, shared, positions, segments):
        def period(stream, scanned):
            params, layer = scanned
            for index, module in enumerate(modules):
                after: Any = module.apply(
                    {"params": params[f"block_{index}"]},
                    stream,
                    shared,
                    layer=layer + index,
                    positions=positions,
                    segments=segments,
                )
                stream = after[0]
            return stream, None

        return jax.lax.scan(period, stream, (params, layers), unroll=unroll)[0]

    def forward(params, stream, *others):
        after = run(params, stream, *others)
        return after, (params, after, *others)

    def backward(saved, cotangent):
        params, after, layers, shared, positions, segments = saved

        def period(carry, scanned):
            after, cotangent, by_shared = carry
            params, layer = scanned
            by_params = {}
            for index, module in reversed(list(enumerate(modules))):
                name = f"block_{index}"
                after, cotangent, by_params[name], more = module.backward(
                    params[name],
                    after,
                    cotangent,
                    shared,
                    layer=layer + index,
                    positions=positions,
                    segments=segments,
                )
                by_shared = jax.tree.map(jnp.add, by_shared, more)
            return (after, cotangent, by_shared), by_params

        start = after, cotangent, jax.tree.map(jnp.zeros_like, shared)
        (_, cotangent, by_shared), by_params = jax.lax.scan(
            period, start, (params, layers), reverse=True, unroll=unroll
        )
        return by_params, cotangent, None, by_shared, None, None

    undone = jax.custom_vjp(run)
    undone.defvjp(forward, backward)
    return undone(params, stream, layers, shared, positions, segments)
