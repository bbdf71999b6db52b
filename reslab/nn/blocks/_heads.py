"""The projections of attention, without attention."""

from typing import Any

import flax.linen as nn
import jax

from reslab.nn.base.heads import HeadsModule


class Heads(HeadsModule):
    """The projections of `mixers/attention`, by the same names.

    Attributes:
      (those of `HeadsModule`)
    """

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array | None = None,
        attended: jax.Array | None = None,
    ) -> Any:
        """Reads queries, keys and values from `x`; or projects what was attended to.

        Args:
          x: Features (batch, length, embed).
          positions: Position of each token (batch, length).
          attended: Heads (batch, length, heads, head_dim), to be projected instead.

        Returns:
          Query, key and value (batch, length, heads, head_dim); or features.
        """
        if attended is not None:
            return self.from_heads(attended, x.shape[-1])
        assert positions is not None
        size = self.heads, self.head_dim or x.shape[-1] // self.heads
        query, key = (self.rotated(n, x, size, positions) for n in ("query", "key"))
        return query, key, self.values(x, size)
