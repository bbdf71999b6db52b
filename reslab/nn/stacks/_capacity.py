"""A layer that computes some tokens, and lets the others pass by."""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from reslab.core import registry, surroundings
from reslab.core.errors import ReslabError
from reslab.core.losses import add_loss
from reslab.core.parameters import parameter
from reslab.core.precision import statistics_dtype
from reslab.core.randomness import training_key
from reslab.core.taps import tap
from reslab.core.types import Stream
from reslab.nn.stacks._halting import features_of, mean_of_tokens
from reslab.nn.stacks._loops.span import BlockFactory, unbound, written


class Routing(NamedTuple):
    """The rule by which a layer chooses its tokens; see `stacks/mod`.

    Attributes:
      capacity: Share of the tokens that it computes.
      gate: Function of the router's score that weighs what the layer adds.
      predictor_hidden: Width of the predictor; 0 is the router itself.
      cost: Weight of the predictor's loss.
    """

    capacity: float
    gate: Literal["linear", "sigmoid"]
    predictor_hidden: int
    cost: float

    def computed(self, length: int) -> int:
        """Number of tokens of a row that are computed in training."""
        return min(length, math.ceil(self.capacity * length))


def check_tokens_alone(block: BlockFactory, where: str) -> None:
    """Refuses a layer that has to see all tokens of its row.

    Args:
      block: The layer.
      where: What it is told of.

    Raises:
      ReslabError: If it is one.
    """
    made, reason = unbound(block), ""
    mixer = getattr(made, "unbound_mixer", None)
    if written(block):
        reason = f"a depth memory of every token ({', '.join(sorted(written(block)))})"
    elif getattr(made, "is_reversible", False):
        reason = "a layer that is undone"
    elif not getattr(mixer, "passes_padding", False):
        kind = mixer if mixer is not None else made
        reason = f"{type(kind).__name__}, which cannot pass tokens by"
    if reason:
        raise ReslabError(
            where,
            expected="layers that may leave out tokens",
            got=reason,
            hint="other layers, or mixer attention without a value path",
        )


@functools.lru_cache(maxsize=1024)
def with_capacity(block: BlockFactory, routing: Routing) -> BlockFactory:
    """The same layer for some tokens; one object for one block.

    It has the parameters of the layer, and those of its router.
    """
    inner = unbound(block)
    kind: Any = type(inner)

    def __call__(self, stream, shared, *, layer, positions, segments=None, state=None):
        rest = {"layer": layer, "state": state}
        logits = _scores(self, "router", stream, 0)

        def compute(stream, positions, segments):
            rest.update(positions=positions, segments=segments)
            return kind.__call__(self, stream, shared, **rest)

        if self.is_initializing() or routing.capacity == 1:
            if routing.capacity < 1 and routing.predictor_hidden:
                _scores(self, "predictor", stream, routing.predictor_hidden)
            after, shared, state = compute(stream, positions, segments)
            return _mixed(stream, after, logits, routing), shared, state
        is_real = jnp.ones(positions.shape, bool) if segments is None else segments > 0
        chosen, is_chosen = _choose(self, stream, logits, is_real, state, routing)
        documents = jnp.where(is_chosen, 1 if segments is None else segments, 0)
        of_tokens = (positions, documents.astype(jnp.int32), logits)
        own = [jnp.take_along_axis(a, chosen, axis=1) for a in of_tokens]
        taken = jax.tree.map(lambda leaf: _take(leaf, chosen), stream)
        after, shared, state = compute(taken, own[0], own[1])
        after = _mixed(taken, after, own[2], routing)
        put = jax.tree.map(
            lambda leaf, old, new: _put(leaf, chosen, own[1] > 0, old, new),
            *(stream, taken, after),
        )
        return put, shared, state

    def mixing_flops(self, length: int, features: int) -> int:
        """FLOPs per token of the row."""
        few = routing.computed(length)
        return kind.mixing_flops(self, few, features) * few // length

    methods = {
        "__call__": nn.compact(__call__),
        "mixing_flops": mixing_flops,
        "__module__": kind.__module__,
    }
    # A class of the family of blocks, so that probes see it as a layer.
    made: Callable[..., Any] = type(kind.__name__, (kind,), methods)
    known = dict(getattr(block, "keywords", {}))
    return functools.partial(made, **known)


def _choose(module, stream, logits, is_real, state, routing):
    """Places of the tokens to compute, in order, and which tokens are chosen."""
    length = logits.shape[1]
    score = jnp.where(is_real, logits, -jnp.inf)
    best = jnp.sort(jax.lax.top_k(score, routing.computed(length))[1], axis=1)
    rows = jnp.arange(len(best))[:, None]
    is_best = jnp.zeros_like(is_real).at[rows, best].set(True) & is_real
    said = logits
    if routing.predictor_hidden:
        stopped = jax.lax.stop_gradient(stream)
        said = _scores(module, "predictor", stopped, routing.predictor_hidden)
    wide = said.dtype
    loss = optax.sigmoid_binary_cross_entropy(said, is_best.astype(wide))
    documents = is_real.astype(jnp.int32)
    add_loss(module, "routing", routing.cost * mean_of_tokens(loss, documents))
    is_said = (said > 0) & is_real
    agreement = (is_said == is_best).astype(wide)
    tap(module, "routing_agreement", mean_of_tokens(agreement, documents))
    if training_key(module) is not None and state is None:
        return best, is_best
    # Any number of tokens: those to compute first, the others as padding.
    tap(module, "routed_share", mean_of_tokens(is_said.astype(wide), documents))
    return jnp.argsort(~is_said, axis=1, stable=True), is_said


def _scores(module: nn.Module, name: str, stream: Stream, hidden: int) -> jax.Array:
    """A score of each token (batch, length), in float32 at least."""
    context = module.context
    store = context.param_dtype
    wide = statistics_dtype(store)
    x = features_of(stream).astype(wide)
    if hidden:
        size = surroundings.Linears(features=hidden, kernel_axes=("embed", "mlp"))
        kept = {"dtype": wide, "param_dtype": store, "use_bias": True}
        dense = registry.make("linears", "dense", **size, **kept, name=f"{name}_hidden")
        x = jax.nn.gelu(dense(x))
    axis, init = "mlp" if hidden else "embed", nn.initializers.normal(0.02)
    weight = parameter(module, f"{name}_weight", init, x.shape[-1:], (axis,), store)
    return jnp.sum(x * weight.astype(wide)[None, None], axis=-1)


def _mixed(before: Stream, after: Stream, logits: jax.Array, routing: Routing):
    """Weighs what a layer has added by a function of the router's score."""
    weight = logits if routing.gate == "linear" else jax.nn.sigmoid(logits)

    def mixed(old, new):
        one = weight.reshape((1,) * (new.ndim - 3) + (*weight.shape, 1))
        return old + one.astype(new.dtype) * (new - old)

    return jax.tree.map(mixed, before, after)


def _take(leaf: jax.Array, places: jax.Array) -> jax.Array:
    """The tokens at some places of each row (..., batch, length, embed)."""
    places = places.reshape((1,) * (leaf.ndim - 3) + (*places.shape, 1))
    return jnp.take_along_axis(leaf, places, axis=-2)


def _put(leaf, places, is_chosen, old, new):
    """The leaf with the tokens that are chosen replaced."""
    shape = (1,) * (leaf.ndim - 3)
    new = jnp.where(is_chosen.reshape(*shape, *places.shape, 1), new, old)
    places = jnp.broadcast_to(places.reshape(*shape, *places.shape, 1), new.shape)
    return jnp.put_along_axis(leaf, places, new, axis=-2, inplace=False)
