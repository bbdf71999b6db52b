"""HybridNorm*: HybridNorm whose first layer is pre-norm (Zhuo et al., 2025)."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from reslab.core import registry
from reslab.nn.placements._sublayer import Placement, make_kind
from reslab.nn.placements.hybrid import HybridFirst, HybridNorm


def build(
    *,
    norm: registry.Spec = "rms",
    param_dtype: Any = jnp.float32,
    sublayer: str = "ffn",
    layer: int = 1,
    name: str | None = None,
    parent: Any = dataclasses.MISSING,
) -> Placement:
    """The placement of one layer under HybridNorm*.

        first layer:  y = x + attention_qkv(norm(x));  x = y + f(norm(y))
        all others:   as in `hybrid`

    Reference: Zhuo et al., 2025, https://arxiv.org/abs/2503.04598. Checked against the
    authors' code.

    Args:
      norm: Spec of the normalization.
      param_dtype: Dtype in which the norms' parameters are stored.
      sublayer: Which sublayer this is.
      layer: Index of the layer.
      name: Linen's name of the module.
      parent: Linen's parent of the module.
    """
    shared = {"norm": norm, "param_dtype": param_dtype, "name": name}
    if layer == 0:
        return make_kind(HybridFirst, parent, **shared)
    return make_kind(HybridNorm, parent, sublayer=sublayer, **shared)
