"""Bounds of numbers, told once: beside the argument or the field that they are of."""

import dataclasses

from reslab.core.errors import ReslabError


@dataclasses.dataclass(frozen=True)
class Bounds:
    """A range of numbers.

    Attributes:
      least: The smallest number in it; None is no end.
      above: The largest number below it.
      most: The largest number in it.
      below: The smallest number above it.
      besides: What else is meant by an end, such as "or 0 for all tokens".

    >>> print(Bounds(least=1, most=256)), print(Bounds(above=0))
    at least 1 and at most 256
    above 0
    (None, None)
    """

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    besides: str = ""

    def __contains__(self, value: float) -> bool:
        return (
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        ends = {
            "at least": self.least,
            "above": self.above,
            "at most": self.most,
            "below": self.below,
        }
        told = [f"{end} {value:,}" for end, value in ends.items() if value is not None]
        return " and ".join(told) + (f", {self.besides}" if self.besides else "")

    def check(self, where: str, value: float) -> None:
        """Refuses a number outside.

        Raises:
          ReslabError: If it is; NaN always is.
        """
        if value not in self:
            got = f"{value:,}" if isinstance(value, int) else str(value)
            raise ReslabError(where, expected=str(self), got=got)
