"""Pre-norm whose norms are removed one after the other (Baroni et al., 2025)."""

import functools
from typing import Any, ClassVar

import jax

from reslab.core import registry
from reslab.core.bounds import Whole, bounded
from reslab.core.types import Branch
from reslab.nn.base import sites
from reslab.nn.placements._sublayer import Placement


@bounded
class LayerNormRemoval(Placement):
    """Pre-norm; each norm becomes a constant at a step of its own.

        feed-forward layer l:  start + ffn_gap * l
        mixer of layer l:      start + ffn_gap * depth + mixer_gap * l

    The final norm goes last: `end` gives the step for its `removed_at`. Any norm but
    `removable_layer` stays as it is.

    Reference: Baroni et al., 2025, https://arxiv.org/abs/2507.02559. The authors
    remove the norm before queries and keys and the one before values apart, with
    gaps of 2 and 3; here they are one, with a gap for both.

    Attributes:
      start: Step of the first removal.
      ffn_gap: Steps between two feed-forward layers.
      mixer_gap: Steps between two mixers.
      sublayer: Which sublayer this is.
      sublayers: Number of sublayers in a layer, where all are alike.
      sites: Where the sublayers of every layer begin.
      depth: Number of layers applied.
      (and those of `Placement`)
    """

    start: Whole = 20
    ffn_gap: Whole = 2
    mixer_gap: Whole = 5
    sublayer: str = "ffn"
    sublayers: int = sites.USUAL
    sites: tuple[int, ...] = ()
    depth: int = 1

    normalizes_input: ClassVar[bool] = True

    def _input_norm(self, site: int | jax.Array) -> Branch:
        norm: Any = self._norm("input_norm")
        if not registry.accepts("norms", self.norm, "removed_at"):
            return norm
        layer = sites.layer_of(site, self.sites, self.sublayers)
        step = self.start + self.ffn_gap * layer
        if self.sublayer != "ffn":
            step = self.start + self.ffn_gap * self.depth + self.mixer_gap * layer
        return functools.partial(norm, removed_at=step)


def end(depth: int, start: int = 20, ffn_gap: int = 2, mixer_gap: int = 5) -> int:
    """The step after the last of the layers' norms, when the final one goes.

    >>> end(12)
    104
    """
    return start + (ffn_gap + mixer_gap) * depth


build = LayerNormRemoval
