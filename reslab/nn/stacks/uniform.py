"""The ordinary stack: every layer once, one after the other."""

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
    def passes(self) -> int:
        """Number of times that each layer is applied."""
        return 1

    def make_layers(self, **keywords) -> Layers:
        """The loop over the layers, for stacks that apply them otherwise."""
        return Layers(self.blocks, self.depth, self.is_unrolled, self.remat, **keywords)

    def init_state(
        self, batch: int, length: int, features: int, **keywords: Any
    ) -> State:
        """The state of every layer before the first token."""
        layers = self.make_layers(parent=None)
        return layers.init_state(batch, length, features, **keywords)

    def mixing_flops(self, length: int, features: int) -> int:
        """Matrix-product FLOPs per token beyond the kernels', over all layers."""
        return self.passes * sum(
            count * unbound(block).mixing_flops(length, features)
            for blocks, count in self.make_layers(parent=None).applied()
            for block in blocks
        )

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
