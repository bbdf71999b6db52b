"""State tracking: the running product of elements of a group."""

import dataclasses
import functools
import itertools
from typing import ClassVar, Literal

import numpy as np

from reslab.core.bounds import bounded
from reslab.data.problems import Rows


@dataclasses.dataclass(frozen=True)
@bounded
class Tracking:
    """Asks at every position for the product of all elements up to it.

        x1 x2 x3 ...    graded: x1, x1 x2, x1 x2 x3, ...

    Parity is the group of two elements. A linear recurrence solves it only with
    negative eigenvalues, attention only up to the lengths that it saw; S5 is complete
    for NC1.

    References: Merrill, Petty & Sabharwal, 2024, https://arxiv.org/abs/2404.08819
    (word problems); Grazzini et al., 2024, https://arxiv.org/abs/2411.12537 (negative
    eigenvalues).

    Attributes:
      group: "parity", the cyclic group "z5", or all permutations of three or five.
    """

    group: Literal["parity", "z5", "s3", "s5"] = "parity"

    kinds: ClassVar[tuple[str, ...]] = ("first", "second", "third", "fourth")
    least_length: ClassVar[int] = 4

    @property
    def vocabulary(self) -> int:
        """Elements of the group."""
        return len(products(self.group))

    def sample(
        self, random: np.random.Generator, rows: int, length: int, *, is_held_out: bool
    ) -> Rows:
        """Makes examples; kinds are the quarters of their length."""
        del is_held_out
        table = products(self.group)
        tokens = random.integers(0, len(table), (rows, length))
        answers = np.empty_like(tokens)
        state = np.zeros(rows, np.int64)
        for place in range(length):
            state = table[state, tokens[:, place]]
            answers[:, place] = state
        quarters = np.arange(length) * 4 // length
        return Rows(
            tokens,
            answers,
            np.ones_like(tokens, bool),
            np.broadcast_to(quarters, tokens.shape),
        )


@functools.cache
def products(group: str) -> np.ndarray:
    """The table of products of a group, whose element 0 is the identity.

    >>> products("parity").tolist()
    [[0, 1], [1, 0]]
    """
    if group == "parity":
        return products("z2")
    size = int(group[1:])
    if group[0] == "z":
        return np.add.outer(np.arange(size), np.arange(size)) % size
    elements = list(itertools.permutations(range(size)))
    number = {element: index for index, element in enumerate(elements)}
    return np.array(
        [[number[tuple(b[i] for i in a)] for b in elements] for a in elements]
    )


build = Tracking
