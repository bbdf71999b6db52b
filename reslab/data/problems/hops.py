"""Composition: follow a random cycle for one hop, two hops, and more."""

import dataclasses
from typing import Annotated

import numpy as np

from reslab.core.bounds import Bounds, Count, bounded
from reslab.data.problems import Rows, blank


@dataclasses.dataclass(frozen=True)
@bounded
class Hops:
    """Asks which node is some hops after another on a cycle.

        n1 next(n1) n2 next(n2) ...  (h, start) ...    graded: next^h(start)

    Sources, targets and queries have tokens of their own. Every hop beyond the first
    needs another layer, or another pass of a loop: two layers fail at hop two, where
    three do not.

    Reference: the task family of Sanford, Hsu & Telgarsky, 2024,
    https://arxiv.org/abs/2402.09268 (k-hop induction), on a permutation.

    Attributes:
      nodes: Nodes of the cycle.
      hops: Largest number of hops.
      queries: Queries of an example.
    """

    nodes: Annotated[int, Bounds(least=3, most=2**10)] = 6
    hops: Annotated[int, Bounds(least=1, most=64)] = 3
    queries: Count = 12

    @property
    def kinds(self) -> tuple[str, ...]:
        """One for each number of hops."""
        return tuple(f"hop_{hop + 1}" for hop in range(self.hops))

    @property
    def vocabulary(self) -> int:
        """Sources, targets and queries."""
        return self.nodes * (2 + self.hops)

    @property
    def least_length(self) -> int:
        """Arrows and queries."""
        return 2 * self.nodes + self.queries

    def sample(
        self, random: np.random.Generator, rows: int, length: int, *, is_held_out: bool
    ) -> Rows:
        """Makes examples, new ones for training and for grading alike."""
        del is_held_out
        nodes = np.tile(np.arange(self.nodes), (rows, 1))
        cycle = random.permuted(nodes, axis=1)
        following = np.empty_like(cycle)
        np.put_along_axis(following, cycle, np.roll(cycle, -1, axis=1), axis=1)
        order = random.permuted(nodes, axis=1)
        made = blank(rows, length)
        arrows = 2 * self.nodes
        made.tokens[:, 0:arrows:2] = order
        targets = np.take_along_axis(following, order, axis=1)
        made.tokens[:, 1:arrows:2] = self.nodes + targets
        start = random.integers(0, self.nodes, (rows, self.queries))
        hops = random.integers(0, self.hops, start.shape)
        place, answer = start, start
        for hop in range(self.hops):
            place = np.take_along_axis(following, place, axis=1)
            answer = np.where(hops == hop, place, answer)
        asked = slice(arrows, arrows + self.queries)
        made.tokens[:, asked] = self.nodes * (2 + hops) + start
        made.targets[:, asked] = self.nodes + answer
        made.is_graded[:, asked] = True
        made.kinds[:, asked] = hops
        return made


build = Hops
