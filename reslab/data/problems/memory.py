"""Memorization: a table of random facts, trained on and asked for."""

import dataclasses
import functools
from typing import Annotated, ClassVar

import numpy as np

from reslab.core.bounds import Bounds, bounded
from reslab.core.errors import ReslabError
from reslab.data.problems import Rows, blank


@dataclasses.dataclass(frozen=True)
@bounded
class Memory:
    """Asks for the values of keys that it was trained on.

        a1 b1 v1  a2 b2 v2 ...    graded: v = table[a, b], at b

    The facts are the same for all runs. A model that answers with a loss of `l` nats
    has learned at least `facts * (log2(symbols) - l / ln 2)` bits of them.

    Reference: Allen-Zhu & Li, 2024, https://arxiv.org/abs/2404.05405 (two bits per
    parameter).

    Attributes:
      facts: Number of facts.
      symbols: Different tokens; a key is two of them.

    Raises:
      ReslabError: If there are more facts than keys.
    """

    facts: Annotated[int, Bounds(least=1, most=2**22)] = 1024
    symbols: Annotated[int, Bounds(least=2, most=2**12)] = 64

    kinds: ClassVar[tuple[str, ...]] = ()
    least_length: ClassVar[int] = 3

    def __post_init__(self) -> None:
        if self.facts > self.symbols**2:
            raise ReslabError(
                "problems 'memory': facts",
                expected=f"at most {self.symbols**2}, the keys of two symbols",
                got=str(self.facts),
            )

    @property
    def vocabulary(self) -> int:
        """Symbols."""
        return self.symbols

    @functools.cached_property
    def _table(self) -> tuple[np.ndarray, np.ndarray]:
        random = np.random.default_rng((3, self.facts, self.symbols))
        keys = random.permutation(self.symbols**2)[: self.facts]
        return keys, random.integers(0, self.symbols, self.facts)

    def sample(
        self, random: np.random.Generator, rows: int, length: int, *, is_held_out: bool
    ) -> Rows:
        """Makes examples of facts, the same for training and for grading."""
        del is_held_out
        keys, values = self._table
        chosen = random.integers(0, self.facts, (rows, length // 3))
        made = blank(rows, length)
        end = 3 * chosen.shape[1]
        made.tokens[:, 0:end:3] = keys[chosen] // self.symbols
        made.tokens[:, 1:end:3] = keys[chosen] % self.symbols
        made.tokens[:, 2:end:3] = values[chosen]
        made.targets[:, 1:end:3] = values[chosen]
        made.is_graded[:, 1:end:3] = True
        return made


build = Memory
