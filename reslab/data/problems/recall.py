"""Associative recall: pairs, then their keys in another order."""

import dataclasses
from typing import Annotated, ClassVar

import numpy as np

from reslab.core.bounds import Bounds, Count, bounded
from reslab.core.errors import ReslabError
from reslab.data.problems import Rows, blank


@dataclasses.dataclass(frozen=True)
@bounded
class Recall:
    """Asks for the value of every key of a list of pairs.

        k1 v1 k2 v2 ... kP vP  k(order) ...    graded: v(order)

    Keys of an example differ; one layer of attention fails, two solve it.

    Reference: Arora et al., 2023, https://arxiv.org/abs/2312.04927, Section 4
    (multi-query associative recall); Olsson et al., 2022, arXiv 2209.11895.

    Attributes:
      pairs: Pairs of an example.
      keys: Different keys, and different values.

    Raises:
      ReslabError: If there are more pairs than keys.
    """

    pairs: Count = 8
    keys: Annotated[int, Bounds(least=2, most=2**15)] = 32

    kinds: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if self.pairs > self.keys:
            raise ReslabError(
                "problems 'recall': pairs",
                expected=f"at most {self.keys}, the keys",
                got=str(self.pairs),
            )

    @property
    def vocabulary(self) -> int:
        """Keys and values."""
        return 2 * self.keys

    @property
    def least_length(self) -> int:
        """Pairs, and their keys again."""
        return 3 * self.pairs

    def sample(
        self, random: np.random.Generator, rows: int, length: int, *, is_held_out: bool
    ) -> Rows:
        """Makes examples, new ones for training and for grading alike."""
        del is_held_out
        every = np.tile(np.arange(self.keys), (rows, 1))
        keys = random.permuted(every, axis=1)[:, : self.pairs]
        values = self.keys + random.integers(0, self.keys, keys.shape)
        order = random.permuted(np.tile(np.arange(self.pairs), (rows, 1)), axis=1)
        made = blank(rows, length)
        made.tokens[:, 0 : 2 * self.pairs : 2] = keys
        made.tokens[:, 1 : 2 * self.pairs : 2] = values
        asked = slice(2 * self.pairs, 3 * self.pairs)
        made.tokens[:, asked] = np.take_along_axis(keys, order, axis=1)
        made.targets[:, asked] = np.take_along_axis(values, order, axis=1)
        made.is_graded[:, asked] = True
        return made


build = Recall
