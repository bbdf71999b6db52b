"""Sub-LN: a second norm inside every sublayer (Wang et al., 2022)."""

import dataclasses
import math
from typing import ClassVar

from reslab.core.surroundings import Context
from reslab.nn.base import sites
from reslab.nn.placements._sublayer import Placement


class SubNorm(Placement):
    """Normalizes the sublayer's input, and again before its output projection.

        x = x + W_o norm_inner(heads(norm(x)))
        x = x + W_2 norm_inner(act(W_1 norm(x)))

    The inner norm is over the concatenated heads, or the hidden width. Values,
    output projections and both projections of the feed-forward layer start larger
    by sqrt(log(M)), M the number of sublayers applied, two in a layer of the paper; it
    takes the place of the usual 1/sqrt(M) on output projections.

    Reference: Wang et al., 2022, https://arxiv.org/abs/2210.06423 (decoder-only
    constants). The equations are those of the paper's code for other shapes; no
    values of it are tested.

    Attributes:
      depth: Number of layers applied.
      sites: Where their sublayers begin.
      (and those of `Placement`)
    """

    depth: int = 1
    sites: tuple[int, ...] = ()

    normalizes_input: ClassVar[bool] = True

    def adapt(self, context: Context) -> Context:
        """A norm inside, and larger initial values."""
        gamma = math.sqrt(math.log(sites.count(self.sites, self.depth)))
        return dataclasses.replace(
            context, inner_norm=self.norm, inner_scale=gamma, output_scale=gamma
        )


build = SubNorm
