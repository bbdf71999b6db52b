"""Problems with known answers, one a file: tokens, and which of them are graded.

Examples are made up from a seed, alike on every machine; nothing is tokenized.
"""

import dataclasses
import operator
from typing import Protocol

import numpy as np

from reslab.core import registry
from reslab.core.errors import ReslabError

_HELD_OUT = 1024
# Streams of random numbers that share no example.
_TRAINING, _VALIDATION = 1, 2


@dataclasses.dataclass(frozen=True)
class Rows:
    """Some examples of a problem.

    Attributes:
      tokens: (rows, length).
      targets: Answers, (rows, length).
      is_graded: Where an answer is asked, (rows, length).
      kinds: Kind of each answer, an index into the problem's `kinds`, (rows, length).
    """

    tokens: np.ndarray
    targets: np.ndarray
    is_graded: np.ndarray
    kinds: np.ndarray


class Problem(Protocol):
    """A problem: `build` of a file in this folder, or of the caller's.

    Attributes:
      vocabulary: Number of different tokens.
      kinds: Names of the kinds of answers that are also graded apart; may be empty.
      least_length: Fewest tokens of an example.
    """

    vocabulary: int
    kinds: tuple[str, ...]
    least_length: int

    def sample(
        self, random: np.random.Generator, rows: int, length: int, *, is_held_out: bool
    ) -> Rows:
        """Makes examples.

        Args:
          random: Source of random numbers.
          rows: Number of examples.
          length: Tokens of an example.
          is_held_out: Whether they are to be graded, or trained on.
        """
        ...


def blank(rows: int, length: int) -> Rows:
    """Examples of token 0 in which nothing is graded, to be filled in."""
    shape = (rows, length)
    return Rows(
        np.zeros(shape, np.int32),
        np.zeros(shape, np.int32),
        np.zeros(shape, bool),
        np.zeros(shape, np.int32),
    )


@dataclasses.dataclass(frozen=True)
class Examples:
    """Random access to the examples of a problem; each is a function of its index.

    Args:
      problem: The problem.
      length: Tokens of an example.
      seed: Seed of the run; not used by held-out examples, which all runs share.
      is_held_out: Whether these are graded, or trained on.

    >>> from reslab.data.problems.recall import Recall
    >>> one = Examples(Recall(pairs=2, keys=4), 8, 0, is_held_out=True)[3]
    >>> one["tokens"].shape, int(one["loss_mask"].sum())
    ((8,), 2)
    """

    problem: Problem
    length: int
    seed: int
    is_held_out: bool

    def __len__(self) -> int:
        return _HELD_OUT if self.is_held_out else 2**30

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        stream = (_VALIDATION,) if self.is_held_out else (_TRAINING, self.seed)
        rows = self.problem.sample(
            np.random.default_rng((*stream, index)),
            1,
            self.length,
            is_held_out=self.is_held_out,
        )
        return {
            "tokens": rows.tokens[0].astype(np.int32),
            "targets": rows.targets[0].astype(np.int32),
            "positions": np.arange(self.length, dtype=np.int32),
            "segment_ids": np.ones(self.length, np.int32),
            "loss_mask": rows.is_graded[0].astype(bool),
            "kinds": rows.kinds[0].astype(np.int32),
        }


def make_problem(spec: registry.Spec, length: int) -> Problem:
    """Makes a problem, and checks that a length holds it.

    Raises:
      ReslabError: If the spec is wrong, examples need more tokens, or have others than
        the vocabulary.
    """
    problem = registry.make("problems", spec)
    for name in ("vocabulary", "kinds", "least_length", "sample"):
        if not hasattr(problem, name):
            raise ReslabError(
                f"problem {spec!r}", expected=f"an attribute {name}", got="none"
            )
    if length < problem.least_length:
        raise ReslabError(
            f"problem {spec!r}: length",
            expected=f"at least {problem.least_length} tokens",
            got=str(length),
            hint="data.length, and eval.length if it is set",
        )
    for is_held_out in (False, True):
        one = Examples(problem, length, 0, is_held_out=is_held_out)[0]
        for key, size in (
            ("tokens", problem.vocabulary),
            ("targets", problem.vocabulary),
            ("kinds", max(1, len(problem.kinds))),
        ):
            low, high = int(one[key].min()), int(one[key].max())
            if low < 0 or high >= size:
                raise ReslabError(
                    f"problem {spec!r}: {key}",
                    expected=f"0 to {size - 1}",
                    got=f"{low} to {high}",
                )
    return problem
