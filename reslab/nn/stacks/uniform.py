"""The ordinary stack: every layer once, one after the other."""

import collections
from typing import Any

import flax.linen as nn
import jax

from reslab.core import registry
from reslab.core.surroundings import Context
from reslab.core.types import State
from reslab.nn.stacks._layers import Layers
from reslab.nn.stacks._loops.span import BlockFactory, unbound


class UniformStack(nn.Module):
    """Widens the input to a stream, applies `depth` layers, and narrows it.

    Attributes:
      blocks: Factories of the blocks, tiled over depth.
      depth: Number of layers with parameters of their own.
      residual: Spec of the residual, whose ends open and close the stream.
      context: What the residual may ask of its surroundings.
      is_unrolled: Whether layers are unrolled instead of scanned.
      remat: What the backward pass recomputes: "none", "dots" or "full".
    """

    blocks: tuple[BlockFactory, ...]
    depth: int
    residual: registry.Spec = "plain"
    context: Context = Context()
    is_unrolled: bool = False
    remat: str = "none"

    @property
    def unbound_residual(self) -> Any:
        """The residual outside of any module."""
        return registry.unbound("residuals", self.residual, **vars(self.context))

    @property
    def passes(self) -> int:
        """Number of times that each layer is applied."""
        return 1

    @property
    def route(self) -> tuple[int, ...]:
        """Numbers of the layers applied, in order."""
        return self.passes * tuple(range(self.depth))

    def applications(self, name: str) -> int:
        """Number of times that a kernel is applied to a token, by its name."""
        del name
        return self.passes

    def applied_entries(self, name: str, entries: int, rows: int) -> int:
        """Entries of a kernel, as often as they are applied to a token.

        Args:
          name: Its name in the parameters.
          entries: Entries in one pass.
          rows: Length of its first axis.
        """
        del rows
        return entries * self.applications(name)

    @property
    def stored_blocks(self) -> tuple[BlockFactory, ...]:
        """Factories of the blocks, tiled over depth, as they are made."""
        return self.blocks

    def make_layers(self, layers: range | None = None, **keywords) -> Layers:
        """The loop over the layers, or over some, for stacks that apply them otherwise.

        Args:
          layers: Numbers of consecutive layers; None is all.
          **keywords: Further arguments of `Layers`.
        """
        blocks, depth = self.stored_blocks, self.depth
        if layers is not None:
            blocks = tuple(blocks[layer % len(blocks)] for layer in layers)
            depth = len(layers)
        return Layers(blocks, depth, self.is_unrolled, self.remat, **keywords)

    def init_state(
        self, batch: int, length: int, features: int, **keywords: Any
    ) -> State:
        """The state of every layer before the first token."""
        layers = self.make_layers(parent=None)
        return layers.init_state(batch, length, features, **keywords)

    def mixing_flops(self, length: int, features: int) -> int:
        """Matrix-product FLOPs per token beyond the kernels', over all layers."""
        layers = self.make_layers(parent=None)
        return self.passes * layers.mixing_flops(length, features)

    def asked_parameters(self, features: int) -> int:
        """The most parameters of experts that a token asks, over all layers."""
        total = 0
        for layer, times in collections.Counter(self.route).items():
            block = unbound(self.blocks[layer % len(self.blocks)])
            if hasattr(block, "asked_parameters"):
                total += block.asked_parameters(features, times)
        return total

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        positions: jax.Array,
        segments: jax.Array | None = None,
        state: State = None,
    ) -> tuple[jax.Array, State]:
        """Maps features (batch, length, embed) to the same shape.

        Args:
          x: Features.
          positions: Position of each token in its document (batch, length).
          segments: Document of each token, or None.
          state: State to continue from while generating, or None.

        Returns:
          The features after the last layer, and the new state.
        """
        ends = registry.make(
            "residuals", self.residual, **vars(self.context), name="residual"
        )
        stream = ends.widen(x)
        stream, state = self.apply_layers(stream, state, positions, segments)
        return ends.narrow(stream), state

    def apply_layers(self, stream, state, positions, segments):
        """Applies the layers once; stacks that repeat them override this."""
        return self.make_layers(name="body")(stream, 0, state, positions, segments)


build = UniformStack
