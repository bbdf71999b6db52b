"""Depth memory: keys and values left for later layers, and saved reads."""

import dataclasses
from typing import TypeVar

import jax
from jax.ad_checkpoint import checkpoint_name

T = TypeVar("T")

# A loop that recomputes its layers saves their reads under this name; otherwise it
# would save the whole depth memory before each of them.
DEPTH_READ = "depth_read"


def kept_read(tree: T) -> T:
    """Marks what a layer has read from a depth memory that later layers change."""
    return jax.tree.map(lambda leaf: checkpoint_name(leaf, DEPTH_READ), tree)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Kept:
    """Keys and values of a layer, as its own queries meet them.

    Attributes:
      key: (batch, key length, kv_heads, head_dim), positions applied; while
        generating, all that is in the cache.
      value: The same of values.
      window: Number of latest tokens that the layer sees; 0 is all.
    """

    key: jax.Array
    value: jax.Array
    window: int = dataclasses.field(metadata={"static": True})
