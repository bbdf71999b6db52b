"""Dr.LLM: routers that skip, execute or repeat each layer (Heakl et al., 2025)."""

import math
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.bounds import Bounds, Count, bounded
from reslab.core.routes import watched
from reslab.nn.stacks._routed import RoutedStack

# Choices of a router: how often the layer is applied.
CHOICES = 3


@bounded
class DrLLMStack(RoutedStack):
    """Applies each layer never, once or twice, as its router decides on the prompt.

        m_w = mean of the prompt's window w,   w < W = min(windows, tokens)
        logits = mean_w W_2 gelu(W_1 m_w + b_1) + b_2,   times = argmax softmax(logits)

    Windows have the same number of tokens; the rest, at the end of the prompt, is not
    read. The decision is one for a sequence. New routers apply every layer once.
    Routers learn from paths that `reslab search paths` finds, with the layers frozen:
    `reslab transform "add_routers(labels='RUN/paths.jsonl')"`, then training.

    With a `budget` p from -1 to 1 the probabilities are mixed: from none of the layers
    (-1) over the routers' own (-0.5) and all of them once (0.5) to all of them twice.

    FLOPs are told for all layers twice, which `budget=1.0` comes to. A layer that no
    row of the batch applies, or that none repeats, is not computed; where rows differ,
    it is computed for all of them. A repeated layer keeps a cache for each time, so
    that generation gives what a full pass gives; the authors' code keeps one.

    Reference: Heakl et al., 2025, https://arxiv.org/abs/2510.12773, Section 3.2; the
    budget follows the authors' code, `continuous_router_decision`.

    Attributes:
      hidden: Width of the routers.
      windows: Most windows that the prompt is divided into.
      budget: Where between no layers and all layers twice; -0.5 is the routers' own.
      (and those of `RoutedStack`)
    """

    hidden: Count = 128
    windows: Count = 8
    budget: Annotated[float, Bounds(least=-1, most=1)] = -0.5

    most = 2

    def mixing_flops(self, length: int, features: int) -> int:
        """Adds the routers."""
        each = 2 * (features * self.hidden + self.hidden * CHOICES) * self.windows
        pooled = 2 * features * self.windows
        routers = self.depth * (pooled + math.ceil(each / length))
        return super().mixing_flops(length, features) + routers

    def apply_layers(self, stream, state, positions, segments):
        """Applies the layers as their routers decide."""
        features = jax.tree.leaves(stream)[0].shape[-1]
        normal, zeros = nn.initializers.normal, nn.initializers.zeros
        make, hidden = self.router_parameter, (self.hidden,)
        routers = {
            "in": make(
                *("in", normal(1 / math.sqrt(features))),
                *((features, self.hidden), ("embed", None)),
            ),
            "in_bias": make("in_bias", zeros, hidden, (None,)),
            "out": make("out", zeros, (self.hidden, CHOICES), (None, None)),
            "out_bias": make("out_bias", _once, (CHOICES,), (None,)),
        }

        def decide(router, features, ranks):
            logits = router_logits(router, features, ranks, self.windows)
            mixed = budgeted(jax.nn.softmax(logits), self.budget)
            return jnp.argmax(mixed, axis=-1).astype(jnp.int32), logits

        found = self.apply_routed(stream, state, positions, segments, routers, decide)
        stream, state, _, logits = found
        seen = watched()
        if seen is not None and logits is not None:
            seen.scores = jnp.swapaxes(logits, 0, 1)
        return stream, state


def _once(key: jax.Array, shape: tuple[int, ...], dtype) -> jax.Array:
    """Biases of routers that apply the layer once."""
    del key
    return jnp.broadcast_to(jnp.asarray([0, 1, 0], dtype), shape)


def router_logits(
    router: dict[str, jax.Array], features: jax.Array, ranks: jax.Array, windows: int
) -> jax.Array:
    """Logits of one layer's router (batch, choices).

    Args:
      router: Its parameters: `in`, `in_bias`, `out`, `out_bias`.
      features: The stream (batch, length, embed).
      ranks: Number of each token among those that are read (batch, length), or -1.
      windows: Most windows.
    """
    total = jnp.max(ranks, axis=1, keepdims=True) + 1
    count = jnp.clip(total, 1, windows)
    size = jnp.maximum(total // count, 1)
    window = jnp.where(ranks >= 0, ranks // size, windows)
    is_kept = window < jnp.minimum(count, total)
    weight = jax.nn.one_hot(jnp.where(is_kept, window, windows), windows)
    means = jnp.einsum("blw,ble->bwe", weight.astype(features.dtype), features)
    means = means / size[..., None].astype(features.dtype)
    h = means @ router["in"] + router["in_bias"][None, None]
    each = jax.nn.gelu(h, approximate=True) @ router["out"]
    each = each + router["out_bias"][None, None]
    is_window = jnp.arange(windows, dtype=count.dtype)[None] < count
    each = jnp.where(is_window[..., None], each, 0)
    return jnp.sum(each, axis=1) / count.astype(each.dtype)


def budgeted(probabilities: jax.Array, budget: float) -> jax.Array:
    """Probabilities of skipping, applying once and twice, moved by a budget.

    Args:
      probabilities: Those of a router (batch, choices).
      budget: From -1, never, over -0.5, the router's own, and 0.5, once, to 1, twice.
    """
    never, once, twice = jnp.eye(CHOICES, dtype=probabilities.dtype)[:, None]
    if budget <= -0.5:
        return _between(never, probabilities, 2 * (budget + 1))
    if budget <= 0.5:
        return _between(probabilities, once, budget + 0.5)
    fixed = _between(once, twice, 2 * (budget - 0.5))
    return jnp.broadcast_to(fixed, probabilities.shape)


def _between(first: jax.Array, second: jax.Array, share: float) -> jax.Array:
    return (1 - share) * first + share * second


build = DrLLMStack
