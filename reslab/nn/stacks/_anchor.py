"""Attention to keys and values that were computed once, for stacks that loop."""

import functools
from collections.abc import Collection
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.bounds import Count, bounded
from reslab.core.errors import ReslabError
from reslab.core.types import Shared, State
from reslab.nn.base import ragged
from reslab.nn.base.heads import HeadsModule
from reslab.nn.stacks._loops.span import BlockFactory
from reslab.ops.attention.api import attention

# The entry of the depth memory.
ANCHOR = "anchor"


@bounded
class AnchorAttention(HeadsModule):
    """Queries of its own, and the keys and values of the depth memory's anchor.

    Attributes:
      heads: Number of heads.
      sees_later: Whether a token sees those after it, too.
      (and those of `HeadsModule`)
    """

    heads: Count = 4
    sees_later: bool = False

    writes_shared = ()
    passes_padding = True

    def init_state(
        self,
        batch: int,
        length: int,
        features: int,
        shared: Collection[str] = (),
    ) -> State:
        """No state: the anchor's belongs to the stack."""
        del batch, length, features, shared
        return {}

    def mixing_flops(self, length: int, features: int) -> int:
        """Scores and weighted values over all `length` keys, per token."""
        return 4 * length * features

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        positions: jax.Array,
        segments: jax.Array | None = None,
        shared: Shared | None = None,
        state: State = None,
    ) -> tuple[jax.Array, Shared, State]:
        """Attends from `x` (batch, length, embed) to the anchor."""
        del positions
        known = dict(shared or {})
        anchor = known[ANCHOR]
        query = self.to_heads("query", x, head_size(x.shape[-1], self.heads))
        place: dict[str, Any] = {"segments": segments}
        if "index" in anchor:
            place = {"query_index": anchor["index"]}
        y = attention(
            *(query, anchor["key"], anchor["value"]),
            **place,
            is_causal=not self.sees_later,
        )
        return self.from_heads(y, x.shape[-1]), known, state


def head_size(features: int, heads: int) -> tuple[int, int]:
    """Heads, and features of each.

    Raises:
      ReslabError: If the one does not divide the other.
    """
    if features % heads:
        raise ReslabError(
            "stacks 'cart': heads",
            expected=f"a divisor of the width ({features})",
            got=str(heads),
        )
    return heads, features // heads


def empty_anchor(batch: int, length: int, size: tuple[int, int], dtype: Any) -> State:
    """A cache of keys and values before the first token."""
    empty = jnp.zeros((batch, length, *size), dtype)
    count = jnp.zeros((batch,), jnp.int32)
    return {"key": empty, "value": empty, "length": count}


def appended(
    new: dict[str, jax.Array], state: State, segments: jax.Array | None
) -> tuple[dict[str, jax.Array], State]:
    """The anchor of all tokens so far, and its cache with the new ones.

    Args:
      new: Keys and values of the new tokens (batch, length, heads, head_dim).
      state: The cache, or None.
      segments: With a cache, 0 marks padding.
    """
    if state is None:
        return new, None
    batch, length = new["key"].shape[:2]
    is_real = ragged.real_tokens(segments)
    rank = ragged.ranks(is_real, batch, length)
    place = state["length"][:, None] + rank
    written = place
    if is_real is not None:
        # Past the end, so that nothing is written.
        written = jnp.where(is_real, place, state["key"].shape[1])
    row = jnp.arange(batch)[:, None]
    kept = {k: state[k].at[row, written].set(new[k], mode="drop") for k in new}
    count = state["length"] + rank[:, -1] + 1
    return {**kept, "index": place}, {**kept, "length": count}


@functools.lru_cache(maxsize=1024)
def anchored(block: BlockFactory, heads: int, is_causal: bool) -> BlockFactory:
    """The same block, whose mixer attends to the anchor; one object for one block."""
    mixer = functools.partial(AnchorAttention, heads=heads, sees_later=not is_causal)
    return functools.partial(block, mixer=mixer)
