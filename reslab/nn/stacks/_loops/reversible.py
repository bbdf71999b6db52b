"""The loop over layers that can be undone: it keeps the last stream alone."""

from typing import Any

import jax
import jax.numpy as jnp

from reslab.core.errors import ReslabError
from reslab.core.losses import LOSSES
from reslab.core.randomness import without_randomness
from reslab.core.taps import is_watched
from reslab.core.types import Shared, Stream
from reslab.nn.stacks._loops.span import Change, Span, unbound

_WHERE = "a backward pass that undoes layers"


def refusal(span: Span, shared: Shared) -> str:
    """Names what of a span this loop cannot carry; "" is nothing."""
    if not all(getattr(unbound(b), "is_reversible", False) for b in span.blocks):
        return "blocks that cannot be undone"
    if span.state is not None:
        return "states of a model that generates"
    if span.writes - set(shared) or span.renews:
        return "a depth memory that its layers write"
    if set(span.collections) != {"params"}:
        return "collections beside the parameters"
    if is_watched():
        return "taps"
    return ""


def run(span: Span, stream: Stream, shared: Shared) -> tuple[Stream, Shared, Change]:
    """Applies the periods of a span; the backward pass undoes them.

    The forward pass keeps its end and the parameters. The backward pass goes through
    the layers in the other order, each giving its gradients and the stream before it
    by its method `backward`. So what is kept does not grow with depth.

    Args:
      span: The span; `refusal` returns "" for it.
      stream: The stream before the first layer.
      shared: The depth memory, which is only read.

    Returns:
      The stream after the last layer, the depth memory, and no change.

    Raises:
      ReslabError: If a layer draws random numbers or adds a loss.
    """
    mutable = [LOSSES] if LOSSES in span.mutable else False
    modules = [block(parent=None) for block in span.blocks]
    unroll = span.count if span.is_unrolled else 1

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
                    mutable=mutable,
                )
                if mutable:
                    after, added = after
                    _check_no_losses(added)
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
    with without_randomness(_WHERE if span.keys else ""):
        stream = undone(
            span.collections["params"],
            stream,
            jnp.asarray(span.layers),
            shared,
            span.positions,
            span.segments,
        )
    return stream, shared, Change({}, None)


def _check_no_losses(added: Any) -> None:
    if added.get(LOSSES):
        raise ReslabError(
            _WHERE,
            expected="layers that add nothing to the loss",
            got=", ".join(sorted(_names(added[LOSSES]))),
            hint="block standard",
        )


def _names(tree: Any) -> set[str]:
    return {path[-2].key for path, _ in jax.tree_util.tree_leaves_with_path(tree)}
