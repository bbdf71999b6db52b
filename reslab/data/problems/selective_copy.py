"""Selective copying: repeat the symbols that lie among blanks."""

import dataclasses
from typing import Annotated, ClassVar

import numpy as np

from reslab.core.bounds import Bounds, Count, bounded
from reslab.data.problems import Rows, blank


@dataclasses.dataclass(frozen=True)
@bounded
class SelectiveCopy:
    """Asks for the symbols of a sequence of blanks, in order.

        . a . . b . c .  go go go    graded: a b c

    Reference: Gu & Dao, 2023, https://arxiv.org/abs/2312.00752, Section 4.1.1.

    Attributes:
      symbols: Different symbols.
      count: Symbols of an example.
    """

    symbols: Annotated[int, Bounds(least=2, most=2**15)] = 16
    count: Count = 8

    kinds: ClassVar[tuple[str, ...]] = ()

    @property
    def vocabulary(self) -> int:
        """Symbols, blank and go."""
        return self.symbols + 2

    @property
    def least_length(self) -> int:
        """Each symbol once, with a blank, and once as an answer."""
        return 3 * self.count

    def sample(
        self, random: np.random.Generator, rows: int, length: int, *, is_held_out: bool
    ) -> Rows:
        """Makes examples, new ones for training and for grading alike."""
        del is_held_out
        context = length - self.count
        places = random.permuted(np.tile(np.arange(context), (rows, 1)), axis=1)
        places = np.sort(places[:, : self.count], axis=1)
        symbols = random.integers(0, self.symbols, places.shape)
        made = blank(rows, length)
        made.tokens[:] = self.symbols
        np.put_along_axis(made.tokens, places, symbols.astype(np.int32), axis=1)
        made.tokens[:, context:] = self.symbols + 1
        made.targets[:, context:] = symbols
        made.is_graded[:, context:] = True
        return made


build = SelectiveCopy
