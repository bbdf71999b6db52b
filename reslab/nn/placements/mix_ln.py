"""Mix-LN: post-norm in the first layers, pre-norm in the others (Li et al., 2024)."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from reslab.core import registry
from reslab.core.bounds import Fraction, bounded
from reslab.nn.placements._sublayer import Placement, make_kind
from reslab.nn.placements.post import PostNorm
from reslab.nn.placements.pre import PreNorm


@bounded
def build(
    alpha: Fraction = 0.25,
    *,
    norm: registry.Spec = "rms",
    param_dtype: Any = jnp.float32,
    layer: int = 0,
    layers: int = 1,
    name: str | None = None,
    parent: Any = dataclasses.MISSING,
) -> Placement:
    """The placement of one layer under Mix-LN.

        post-norm in the first floor(alpha * layers) layers, pre-norm after them

    Pre-norm leaves deep layers with small gradients, post-norm early ones; the mix
    has both kinds where they learn.

    Reference: Li et al., 2024, https://arxiv.org/abs/2412.13795. Checked against the
    authors' code, which also applies a final norm where all layers are post-norm;
    here none is needed then.

    Args:
      alpha: Share of the layers that are post-norm.
      norm: Spec of the normalization.
      param_dtype: Dtype in which the norms' parameters are stored.
      layer: Index of the layer.
      layers: Number of layers with parameters of their own.
      name: Linen's name of the module.
      parent: Linen's parent of the module.

    Raises:
      ReslabError: If `alpha` is not between 0 and 1.
    """
    # Rounded first: 0.3 * 10 is a little less than 3 in binary.
    first_pre = int(round(alpha * layers, 9))
    kind = PostNorm if layer < first_pre else PreNorm
    return make_kind(kind, parent, norm=norm, param_dtype=param_dtype, name=name)
