"""WideNet: one layer at every depth, with norms of its own (Xue et al., 2021)."""

from reslab.core.bounds import Count, bounded
from reslab.nn.stacks._loops.span import BlockFactory
from reslab.nn.stacks._own_norms import with_own_norms
from reslab.nn.stacks._repeating import RepeatingStack, Stage


@bounded
class WideStack(RepeatingStack):
    """Applies one layer at all depths; at each its norms have their own parameters.

        x = x + mixer(norm_(l, 1)(x)),   x = x + ffn(norm_(l, 2)(x)),   l = 1 ... depth

    Parameters grow with depth by those of the norms around sublayers alone. A wide
    layer has experts: with ffn "experts" all depths share one router and one set of
    experts, which get other tokens at each depth by its norms; balance losses add up
    over depth.

    Reference: Xue et al., 2021, https://arxiv.org/abs/2107.11817, Section 3 (experts 4,
    two for a token, capacity 1.2). Written from a description of a published
    implementation.

    Attributes:
      unique: Number of layers that are stored, a divisor of the depth; applied in turn.
      (and those of `RepeatingStack`)

    Raises:
      ReslabError: If the depth is no multiple of `unique`, layers that share parameters
        have different parts, or a norm takes statistics of a
        batch.
    """

    unique: Count = 1

    @property
    def stages(self) -> list[Stage]:
        """The layers that are stored, as often as they go into the depth."""
        return [self.whole_cycle(self.unique)]

    @property
    def stored_blocks(self) -> tuple[BlockFactory, ...]:
        """The blocks, with norms of each depth."""
        blocks = self.cycle(self.unique)
        if self.passes == 1:
            return blocks
        return tuple(
            with_own_norms(block, self.passes, "stacks 'wide'") for block in blocks
        )


build = WideStack
