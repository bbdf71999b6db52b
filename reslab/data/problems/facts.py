"""Facts of two hops: do compositions that were never seen come out right?"""

import dataclasses
import functools
from typing import Annotated, ClassVar

import numpy as np

from reslab.core.bounds import Bounds, Fraction, bounded
from reslab.core.errors import ReslabError
from reslab.data.problems import Rows, blank


@dataclasses.dataclass(frozen=True)
@bounded
class Facts:
    """Asks for the end of two facts, one after the other.

        a b c    graded at c: second[first[a, b], c]

    Both tables are random and the same for all runs; a share of the rows of each is
    seen in training, where every composition of seen rows but for a share that is held
    out may be. Held-out answers are of four kinds: compositions that were trained on,
    new compositions of seen facts, and those with a first or a second fact that no
    training example has, which nothing in the data decides.

    Reference: Chang et al., 2025, https://arxiv.org/abs/2505.20278 (the coverage
    principle), Section 3.

    Attributes:
      symbols: Different tokens, bridges among them.
      seen: Share of the facts of each table that training has.
      held_out: Share of the compositions of seen facts that are kept from training.

    Raises:
      ReslabError: If nothing is left to train on.
    """

    symbols: Annotated[int, Bounds(least=4, most=2**7)] = 20
    seen: Fraction = 0.7
    held_out: Fraction = 0.3

    kinds: ClassVar[tuple[str, ...]] = ("trained", "new", "no_first", "no_second")
    least_length: ClassVar[int] = 3

    def __post_init__(self) -> None:
        if not len(self.triples[0]):
            raise ReslabError(
                "problems 'facts'",
                expected="facts to train on: a larger seen, or a smaller held_out",
                got=f"seen={self.seen}, held_out={self.held_out}",
            )

    @property
    def vocabulary(self) -> int:
        """Symbols."""
        return self.symbols

    @functools.cached_property
    def _tables(self) -> tuple[np.ndarray, np.ndarray]:
        """Two tables of shape (symbols, symbols)."""
        random = np.random.default_rng((4, self.symbols))
        shape = (2, self.symbols, self.symbols)
        first, second = random.integers(0, self.symbols, shape)
        return first, second

    @functools.cached_property
    def triples(self) -> list[np.ndarray]:
        """Arguments (a, b, c) of every kind, (number, 3)."""
        random = np.random.default_rng((5, self.symbols))
        shape = (self.symbols, self.symbols)
        is_drawn = [random.random(shape) < self.seen for _ in range(2)]
        every = np.indices((self.symbols,) * 3, np.int16).reshape(3, -1).T
        a, b, c = every.T
        bridge = self._tables[0][a, b]
        is_kept = random.random(len(every)) < self.held_out
        trained = is_drawn[0][a, b] & is_drawn[1][bridge, c] & ~is_kept
        # Facts are seen that training has, not those that were drawn.
        seen = np.zeros((2, *shape), bool)
        seen[0, a[trained], b[trained]] = seen[1, bridge[trained], c[trained]] = True
        first, second = seen[0, a, b], seen[1, bridge, c]
        chosen = (trained, first & second & ~trained, ~first & second, first & ~second)
        return [every[one] for one in chosen]

    def answers(self, triples: np.ndarray) -> np.ndarray:
        """The end of each pair of facts."""
        first, second = self._tables
        a, b, c = triples.T
        return second[first[a, b], c]

    def sample(
        self, random: np.random.Generator, rows: int, length: int, *, is_held_out: bool
    ) -> Rows:
        """Makes examples: of trained compositions, or of all kinds as often."""
        made = blank(rows, length)
        known = [kind for kind, one in enumerate(self.triples) if len(one)]
        kinds = random.choice(known if is_held_out else [0], rows)
        for row, kind in enumerate(kinds):
            pool = self.triples[kind]
            triple = pool[random.integers(0, len(pool), 1)]
            made.tokens[row, :3] = triple[0]
            made.targets[row, 2] = self.answers(triple)[0]
        made.is_graded[:, 2] = True
        made.kinds[:, 2] = kinds
        return made


build = Facts
