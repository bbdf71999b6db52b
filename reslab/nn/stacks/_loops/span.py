"""Span: consecutive layers as one pure step that is repeated."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.losses import LOSSES
from reslab.core.model_state import MODEL_STATE
from reslab.core.taps import TAPS
from reslab.core.types import Shared, State, Stream
from reslab.nn.base.depth_memory import DEPTH_READ

BlockFactory = Callable[..., nn.Module]

# Collections that a loop passes to layers, and those that layers write.
READ = ("params", *MODEL_STATE)
WRITTEN = (TAPS, LOSSES, *MODEL_STATE)

_READS = jax.checkpoint_policies.save_only_these_names(DEPTH_READ)

# Values of each layer that the backward pass saves instead of recomputing.
REMAT_POLICIES: Mapping[str, Any] = {
    "none": None,
    "full": _READS,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable, _READS
    ),
}


class Period(nn.Module):
    """One period of the pattern of blocks.

    Attributes:
      blocks: One factory for each layer of the period.
    """

    blocks: tuple[BlockFactory, ...]

    @nn.compact
    def __call__(
        self,
        stream: Stream,
        shared: Shared,
        states: State,
        *,
        layer: int | jax.Array,
        positions: jax.Array,
        segments: jax.Array | None,
    ) -> tuple[Stream, Shared, State]:
        """Applies the blocks, from layer number `layer` on.

        Returns:
          The stream, the depth memory, and new states.
        """
        new_states = []
        for index, block in enumerate(self.blocks):
            stream, shared, state = block(name=f"block_{index}")(
                stream,
                shared,
                layer=layer + index,
                positions=positions,
                segments=segments,
                state=None if states is None else states[index],
            )
            new_states.append(state)
        return stream, shared, None if states is None else tuple(new_states)


class Change(NamedTuple):
    """Everything that a step changes beside the stream and the depth memory.

    Attributes:
      collections: Collections that its modules wrote to.
      state: The state to continue from, or None.
    """

    collections: Any
    state: State


@dataclasses.dataclass(frozen=True)
class Span:
    """Periods of layers that differ in their variables alone.

    Attributes:
      blocks: One factory for each layer of a period.
      collections: The variables of each period, stacked on axis 0.
      keys: Random keys of each period, by name, stacked on axis 0.
      layers: Number of the first layer of each period: an array, or a tuple where
        the numbers are known.
      state: The state of each period, stacked on axis 0, or None.
      positions: Position of each token in its document (batch, length).
      segments: Document of each token, or None.
      mutable: Names of the collections that modules may write to.
      remat: A key of `REMAT_POLICIES`.
      is_unrolled: Whether the periods are laid out one after the other.
    """

    blocks: tuple[BlockFactory, ...]
    collections: Mapping[str, Any]
    keys: Mapping[str, jax.Array]
    layers: jax.Array | tuple[int, ...]
    state: State
    positions: jax.Array
    segments: jax.Array | None
    mutable: tuple[str, ...]
    remat: str
    is_unrolled: bool

    @property
    def count(self) -> int:
        """Number of periods."""
        return len(self.layers)

    @property
    def xs(self) -> Any:
        """Inputs of every step, stacked on axis 0."""
        return (self.collections, self.keys), (jnp.asarray(self.layers), self.state)

    @property
    def writes(self) -> frozenset[str]:
        """Names of entries that the layers write to the depth memory."""
        return frozenset().union(*map(written, self.blocks))

    @property
    def renews(self) -> frozenset[str]:
        """Names of entries that later layers may overwrite."""
        return frozenset().union(*map(renewed, self.blocks))

    def step(
        self, variables: Any, stream: Stream, shared: Shared, x: Any
    ) -> tuple[Stream, Shared, Change]:
        """Applies one period; a pure function.

        Args:
          variables: Collections and keys of the period.
          stream: The stream.
          shared: The depth memory.
          x: Number of its first layer, and its state.

        Returns:
          The stream, the entries of the depth memory that it wrote, and what else it
          changed.
        """
        (collections, keys), (layer, state) = variables, x
        period = Period(self.blocks, parent=None)
        found: Any = period.apply(
            collections,
            stream,
            shared,
            state,
            layer=layer,
            positions=self.positions,
            segments=self.segments,
            mutable=list(self.mutable),
            rngs=dict(keys),
        )
        (stream, after, state), changed = found
        entries = {
            key: value
            for key, value in after.items()
            if key not in shared or key in self.renews
        }
        return stream, entries, Change(changed, state)

    def remembered(self, **keywords: Any) -> Callable[..., Any]:
        """The step, computed again in the backward pass as `remat` says."""
        if self.remat == "none":
            return self.step
        # XLA merges nothing across the boundary of a rolled scan.
        return jax.checkpoint(
            self.step,
            policy=REMAT_POLICIES[self.remat],
            prevent_cse=self.is_unrolled,
            **keywords,
        )

    def rows(self, index: slice | jax.Array) -> "Span":
        """The same span with some of its periods, in any order."""
        # NumPy arrays cannot be indexed by traced numbers.
        variables, (layers, state) = jax.tree.map(
            lambda leaf: jnp.asarray(leaf)[index], self.xs
        )
        collections, keys = variables
        return dataclasses.replace(
            self, collections=collections, keys=keys, layers=layers, state=state
        )

    def stopped(self) -> "Span":
        """The same span without a gradient by its variables."""
        return dataclasses.replace(
            self, collections=jax.lax.stop_gradient(self.collections)
        )


@functools.lru_cache(maxsize=1024)
def unbound(block: BlockFactory) -> Any:
    """The block of a factory outside of any module, to read its traits."""
    return block(parent=None)


def written(block: BlockFactory) -> frozenset[str]:
    """Names of entries that a block may write to the depth memory."""
    return frozenset(unbound(block).writes_shared or ())


def renewed(block: BlockFactory) -> frozenset[str]:
    """Names of entries that a block may overwrite in the depth memory."""
    return frozenset(getattr(unbound(block), "renews_shared", ()))
