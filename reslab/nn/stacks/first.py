"""FiRST: routers that decide on the prompt which layers to skip (Jain et al., 2024)."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.bounds import Fraction, Momentum, NonNegative, bounded
from reslab.core.losses import add_loss
from reslab.core.model_state import BATCH_STATS
from reslab.core.precision import statistics_dtype
from reslab.nn.stacks._routed import RoutedStack

_EPSILON = 1e-5
# Bias of a new router, which applies its layer: sigmoid(2) = 0.88.
_APPLIED = 2.0


@bounded
class FirstStack(RoutedStack):
    """Applies a layer, or skips it, as its router decides on the prompt.

        r = mean over the prompt of sigmoid(batch_norm(w . h)),   applied if r >= 0.5
        routers learn by:  h' = r layer(h) + (1 - r) h,
        loss + binary * mean r (1 - r) + balance |mean r - target|,   over layers

    The decision is one for a sequence, so that all its tokens have the same caches. The
    paper then repairs the layers that are left: with `is_soft=False` training applies
    and skips as evaluation does, so `reslab transform add_lora` and frozen routers give
    a repaired model. A layer that every row of a batch skips is not computed; where
    rows differ, it is computed for all of them. FLOPs are told for all layers.

    Reference: Jain et al., 2024, https://arxiv.org/abs/2410.12513, whose abstract alone
    was at hand: the form of router and loss is an understanding of it.

    Attributes:
      target: Share of the layers to be applied.
      balance: Weight of the distance from `target`.
      binary: Weight of what keeps decisions off the middle.
      is_soft: Whether training mixes a layer with its input, so that routers learn.
      momentum: Share of running statistics that a step keeps.
      (and those of `RoutedStack`)
    """

    target: Fraction = 0.75
    balance: NonNegative = 1.0
    binary: NonNegative = 0.1
    is_soft: bool = True
    momentum: Momentum = 0.9

    def _running(self, dtype: Any) -> dict[str, Any]:
        """Running mean and variance of every router's score."""
        found: dict[str, Any] = {}
        for name, value in (("mean", 0.0), ("variance", 1.0)):
            first = jnp.full((self.depth,), value, dtype)
            name_in = f"router_{name}"
            if self.is_mutable_collection(BATCH_STATS) or self.has_variable(
                BATCH_STATS, name_in
            ):
                found[name] = self.variable(BATCH_STATS, name_in, lambda f=first: f)
            else:
                found[name] = _Fixed(first)
        return found

    def apply_layers(self, stream, state, positions, segments):
        """Applies the layers as their routers decide, or mixes them."""
        features = jax.tree.leaves(stream)[0].shape[-1]
        constant = nn.initializers.constant
        make, wide = self.router_parameter, statistics_dtype(self.context.param_dtype)
        running = self._running(wide)
        routers = {
            "in": make("in", nn.initializers.normal(0.02), (features,), ("embed",)),
            "gain": make("gain", constant(1.0), (), ()),
            "bias": make("bias", constant(_APPLIED), (), ()),
            **{name: one.value for name, one in running.items()},
        }
        is_trained = self.is_mutable_collection(BATCH_STATS) and state is None
        is_soft = self.is_soft and is_trained and not self.is_initializing()

        def decide(router, features, ranks):
            weight = (ranks >= 0).astype(wide)
            score = jnp.sum(features * router["in"][None, None], axis=-1)
            moments = router["mean"], router["variance"]
            if is_soft:
                count = jnp.maximum(jnp.sum(weight), 1)
                mean = jnp.sum(score * weight) / count
                spread = jnp.sum(jnp.square(score - mean) * weight) / count
                moments = mean, spread
            score = (score - moments[0]) * jax.lax.rsqrt(moments[1] + _EPSILON)
            chance = jax.nn.sigmoid(score * router["gain"] + router["bias"])
            tokens = jnp.maximum(jnp.sum(weight, axis=1), 1)
            share = jnp.sum(chance * weight, axis=1) / tokens
            return (share >= 0.5).astype(jnp.int32), (share, moments)

        found: Any = self.apply_routed(
            *(stream, state, positions, segments, routers, decide),
            mix=_mixed if is_soft else None,
        )
        stream, state, _, told = found
        if is_soft:
            share, moments = told
            for name, new in zip(running, moments, strict=True):
                kept = self.momentum * running[name].value
                fresh = jax.lax.stop_gradient(new).astype(wide)
                running[name].value = kept + (1 - self.momentum) * fresh
            binary = self.binary * jnp.mean(share * (1 - share))
            distance = jnp.abs(jnp.mean(share) - self.target)
            add_loss(self, "first", binary + self.balance * distance)
        return stream, state


@dataclasses.dataclass
class _Fixed:
    """The statistics of a router that never learned."""

    value: jax.Array


def _mixed(told, before, after):
    """The stream of a layer that is applied by a share of each row."""
    share = told[0][:, None, None]

    def one(old, new):
        s = share.astype(new.dtype)
        return s * new + (1 - s) * old

    return jax.tree.map(one, before, after)


build = FirstStack
