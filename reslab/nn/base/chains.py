"""Chains: parts of a width; each reads only earlier chains (Song et al.)."""

import itertools
from collections.abc import Sequence

from reslab.core.errors import ReslabError


def check(where: str, chains: Sequence[int]) -> None:
    """Checks the weights of chains.

    Args:
      where: The variant, for the error.
      chains: How wide each is, relative to the others.

    Raises:
      ReslabError: If `chains` is empty, or one is not a positive integer.
    """
    if not chains or not all(isinstance(c, int) and c > 0 for c in chains):
        raise ReslabError(
            f"{where}: chains", expected="positive integers", got=repr(tuple(chains))
        )


def ends(where: str, chains: Sequence[int], width: int) -> tuple[int, ...]:
    """Returns the end of each chain in an axis of a given width.

    Args:
      where: The variant, for the error.
      chains: How wide each is, relative to the others.
      width: Size of the axis.

    Raises:
      ReslabError: If the chains do not divide the width.

    >>> ends("linears 'chain'", (1, 1, 2), 16)
    (4, 8, 16)
    """
    unit, rest = divmod(width, sum(chains))
    if rest:
        raise ReslabError(
            f"{where}: chains",
            expected=f"integers whose sum divides the width ({width})",
            got=f"{tuple(chains)}, which sum to {sum(chains)}",
        )
    return tuple(unit * total for total in itertools.accumulate(chains))
