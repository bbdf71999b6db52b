"""LayerNorm scaling: pre-norm whose output shrinks with depth (Sun et al., 2025)."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from reslab.core.precision import scaled, statistics_dtype
from reslab.core.surroundings import Context
from reslab.core.types import Branch
from reslab.nn.base import sites
from reslab.nn.placements._sublayer import Placement


class LayerNormScaling(Placement):
    """Divides what each sublayer reads by the square root of its layer.

        x = x + f(norm(x) / sqrt(l)),    l = 1, 2, ... the layer

    This keeps the variance of the stream from growing with depth. The final norm is
    not scaled, and output projections do not start smaller by depth: the authors
    advise against both at once.

    Reference: Sun et al., 2025, https://arxiv.org/abs/2502.05795. Checked against the
    authors' code, in which this branch cannot be reached as published (it
    compares a lower-cased name with an upper-case one).

    Attributes:
      sublayers: Number of sublayers in a layer, where all are alike.
      sites: Where the sublayers of every layer begin.
      (and those of `Placement`)
    """

    sublayers: int = sites.USUAL
    sites: tuple[int, ...] = ()

    normalizes_input: ClassVar[bool] = True

    def adapt(self, context: Context) -> Context:
        """Output projections start at full size."""
        return dataclasses.replace(context, output_scale=1.0)

    def _input_norm(self, site: int | jax.Array) -> Branch:
        norm = self._norm("input_norm")
        layer = sites.layer_of(site, self.sites, self.sublayers) + 1

        def divided(h):
            y = norm(h)
            root = jnp.sqrt(layer.astype(statistics_dtype(y.dtype)))
            return scaled(y, 1 / root)

        return divided


build = LayerNormScaling
