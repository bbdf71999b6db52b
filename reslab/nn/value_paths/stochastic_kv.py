"""Random cross-layer attention while training, for caches shared later (2026)."""

from collections.abc import Collection

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.bounds import Fraction, bounded
from reslab.core.randomness import training_key
from reslab.core.types import Shared
from reslab.nn.base.depth_memory import kept_read
from reslab.nn.value_paths._path import Keep, Make, ValuePath

_NAME = "keys_values"


@bounded
class StochasticKeysValues(ValuePath):
    """Lets layers read another layer's keys and values at random while training.

        training:    k, v of this layer, or with probability `cross` of one of the
                     earlier layers, each as likely; the same choice for all tokens
        evaluation:  k, v of this layer

    Queries are the layer's own. So the model learns to bear what `reslab transform
    'share_kv(...)'` then does to it: most layers lose their keys and values, and the
    cache with them. Choices are drawn where the model is given a key (see
    `reslab.core.randomness`); keys and values of all layers are then kept, once each,
    in training's forward and backward pass.

    Reference: "Stochastic KV routing" (random cross-layer attention), 2026,
    https://arxiv.org/abs/2604.22782, as reported by secondary sources: the paper was
    not read, and of the two meanings that they give its probability this is the one
    of reading another layer. Property only, no authors' code.

    Attributes:
      cross: Probability of reading another layer, at least 0 and at most 1.
      depth: Number of layers applied.

    Raises:
      ReslabError: If `cross` is out of range.
    """

    cross: Fraction = 0.5
    depth: int = 1

    @property
    def leaves(self) -> Collection[str]:
        """Keys and values of all layers so far, and how many there are."""
        return (_NAME,)

    @property
    def renews(self) -> Collection[str]:
        """Names the entry to which every layer appends."""
        return (_NAME,)

    @nn.compact
    def __call__(
        self, x: jax.Array, *, key: Make, value: Make, keep: Keep, shared: Shared
    ) -> tuple[jax.Array, jax.Array, Shared]:
        """Own keys and values, or those of an earlier layer."""
        del x
        own = keep("key", key()), keep("value", value())
        random = training_key(self)
        if random is None:
            return *own, shared
        layer, kept = shared.get(_NAME) or (
            jnp.zeros((), jnp.int32),
            jax.tree.map(lambda a: jnp.zeros((self.depth, *a.shape), a.dtype), own),
        )
        is_first = layer == 0
        coin, which = jax.random.split(random)
        earlier = jax.random.randint(which, (), 0, jnp.maximum(layer, 1), jnp.int32)
        is_own = is_first | ~jax.random.bernoulli(coin, self.cross)
        source = jnp.where(is_own, layer, earlier)
        kept = jax.tree.map(
            lambda all_, one: jax.lax.dynamic_update_index_in_dim(all_, one, layer, 0),
            kept,
            own,
        )
        read = jax.tree.map(
            lambda all_: jax.lax.dynamic_index_in_dim(all_, source, 0, keepdims=False),
            kept,
        )
        return *kept_read(read), {**shared, _NAME: (layer + 1, kept)}


build = StochasticKeysValues
