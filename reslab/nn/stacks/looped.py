"""A stack whose layers are applied several times with the same weights."""

from reslab.core.bounds import Count, Whole, bounded
from reslab.nn.stacks._repeating import RepeatingStack, Stage, staged


@bounded
class LoopedStack(RepeatingStack):
    """Applies all its layers, or those in the middle, `loops` times over.

        e = prelude(x),   s_0 = e
        s_t = layers(inject(s_(t-1), e) + step[t])
        y = coda(s_loops)

    where `inject` gives its first argument, their sum, or `[s, e] . W_i`. Parameters do
    not grow with `loops`, but for one vector of each step. The depth memory starts
    empty in each pass, and each pass keeps a state of its own while generating. Layers
    are counted over all passes, for parts that scale by depth. Of several streams, each
    is changed alike.

    References: Dehghani et al., 2018, https://arxiv.org/abs/1807.03819, Section 2.1
    (fixed number of steps; step embeddings, here learned); Yang et al., 2023, arXiv
    2311.12424 (the input added in each pass); Geiping et al., 2025, arXiv 2502.05171,
    Section 3 (an adapter of both; prelude and coda).

    Attributes:
      loops: Number of passes.
      prelude: Number of first layers that are applied once.
      coda: Number of last layers that are applied once.
      (and those of `RepeatingStack`)

    Raises:
      ReslabError: If `loops` is below 1, or prelude and coda leave no layer between.
    """

    loops: Count = 2
    prelude: Whole = 0
    coda: Whole = 0

    @property
    def passes(self) -> int:
        """Number of times that each layer of the loop is applied."""
        return self.loops

    @property
    def stages(self) -> list[Stage]:
        """Prelude, loop and coda; the first and the last only where they are."""
        return staged(self.depth, self.prelude, self.coda, self.loops)


build = LoopedStack
