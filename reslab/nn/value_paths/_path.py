"""Base of value paths: most change the values and cache keys and values."""

from collections.abc import Callable, Collection
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.types import Shared

Make = Callable[[], jax.Array]
Keep = Callable[[str, jax.Array], jax.Array]

# Entry of the depth memory for the first layer's values.
FIRST = "values"


class ValuePath(nn.Module):
    """Base of value paths; as it is, keys and values are the layer's own.

    Attributes:
      param_dtype: Dtype in which parameters are stored.
    """

    param_dtype: Any = jnp.float32

    @property
    def leaves(self) -> Collection[str]:
        """Names the entries written to the depth memory where they are missing."""
        return ()

    @property
    def renews(self) -> Collection[str]:
        """Names the entries that replace those of an earlier layer."""
        return ()

    def keeps(self, found: Collection[str]) -> Collection[str]:
        """Returns the ones of "key" and "value" that need a cache.

        Args:
          found: What it will find in the depth memory.
        """
        del found
        return ("key", "value")

    @nn.compact
    def __call__(
        self, x: jax.Array, *, key: Make, value: Make, keep: Keep, shared: Shared
    ) -> tuple[jax.Array, jax.Array, Shared]:
        """Makes the keys and values that the queries of this layer meet.

        Args:
          x: What the layer reads (batch, length, embed).
          key: Makes the layer's own keys (batch, length, kv_heads, head_dim), with
            positions applied. Without a call they have no parameters.
          value: The same for its own values.
          keep: `keep("key", keys)` puts them into the cache, if there is one, and
            returns all that is in it.
          shared: Depth memory.

        Returns:
          Keys, values, and the depth memory with what this layer leaves.
        """
        own_key, own_value = key(), value()
        mixed, shared = self.mix(x, own_value, shared)
        return keep("key", own_key), keep("value", mixed), shared

    def mix(
        self, x: jax.Array, own: jax.Array, shared: Shared
    ) -> tuple[jax.Array, Shared]:
        """Returns the layer's new values and the depth memory."""
        del x
        return own, shared


class FirstValues(ValuePath):
    """Base of paths on which later layers also see the values of the first."""

    @property
    def leaves(self) -> Collection[str]:
        """The first layer's values."""
        return (FIRST,)

    def mix(
        self, x: jax.Array, own: jax.Array, shared: Shared
    ) -> tuple[jax.Array, Shared]:
        """Leaves the values, if they are the first, or mixes them with those."""
        if FIRST not in shared:
            return own, {**shared, FIRST: own}
        return self.mix_first(x, own, shared[FIRST]), shared

    def mix_first(self, x: jax.Array, own: jax.Array, first: jax.Array) -> jax.Array:
        """Combines the layer's own values with the first layer's."""
        raise NotImplementedError
