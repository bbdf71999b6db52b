"""Cross-layer attention: layers that read another layer's keys and values."""

from collections.abc import Collection
from typing import ClassVar

import flax.linen as nn
import jax

from reslab.core.bounds import Whole, bounded
from reslab.core.errors import ReslabError
from reslab.core.types import Shared
from reslab.nn.base.depth_memory import Kept
from reslab.nn.value_paths._path import Keep, Make, ValuePath


@bounded
class SharedKeysValues(ValuePath):
    """Reads the keys and values of the nearest earlier layer that leads.

        y[t] = sum_(s <= t) softmax_s(q[t] . k_leader[s]) v_leader[s]

    The first layer leads, and every one with `is_leader`; the others follow: they
    make only queries, and have no kernels of keys and values and no cache. Tiled over
    depth, `("attention(value_path='shared_kv(is_leader=True)')",
    "attention(value_path='shared_kv')")` halves the cache. Followers of another
    `group` follow its leaders. A follower must see as many tokens (`window`) as its
    leader, and have its kv_heads and head_dim.

    Reference: Brandon et al., 2024, https://arxiv.org/abs/2405.12981, Section 3.
    Tested by its properties; no output of the authors' code.

    Attributes:
      is_leader: Whether to lead even if an earlier layer leads.
      group: Number of the group.
      window: Number of latest tokens visible; 0 is all.

    Raises:
      ReslabError: If the leader sees another number of tokens.
    """

    is_leader: bool = False
    group: Whole = 0
    window: Whole = 0

    # Entries that followers take from the leader; they compute the others.
    takes: ClassVar[Collection[str]] = ("key", "value")

    @property
    def leaves(self) -> Collection[str]:
        """Returns the entries of keys and values that a leader writes."""
        return (self._name,)

    @property
    def renews(self) -> Collection[str]:
        """Keys and values, where it leads anyway."""
        return (self._name,) if self.is_leader else ()

    @property
    def _name(self) -> str:
        return f"kept_{self.group}"

    def keeps(self, found: Collection[str]) -> Collection[str]:
        """Returns the entries that the layer computes itself."""
        both = ("key", "value")
        if self.is_leader or self._name not in found:
            return both
        return tuple(name for name in both if name not in self.takes)

    @nn.compact
    def __call__(
        self, x: jax.Array, *, key: Make, value: Make, keep: Keep, shared: Shared
    ) -> tuple[jax.Array, jax.Array, Shared]:
        """The leader's keys and values, or those that this layer leads with."""
        del x
        made = {
            name: keep(name, make())
            for name, make in (("key", key), ("value", value))
            if name in self.keeps(shared)
        }
        if len(made) == 2:
            own = Kept(made["key"], made["value"], self.window)
            return own.key, own.value, {**shared, self._name: own}
        kept = shared[self._name]
        if kept.window != self.window:
            raise ReslabError(
                f"value_paths {type(self).__name__}: window of a follower",
                expected=f"its leader's, {kept.window}",
                got=str(self.window),
            )
        return made.get("key", kept.key), made.get("value", kept.value), shared


build = SharedKeysValues
