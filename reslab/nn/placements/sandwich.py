"""Sandwich norm: before and after every sublayer (Ding et al., 2021)."""

import dataclasses
from typing import Any, ClassVar, Literal

import jax.numpy as jnp

from reslab.core import registry
from reslab.core.bounds import bounded
from reslab.nn.placements._sublayer import Placement, make_kind
from reslab.nn.placements.post import PostNorm


class SandwichNorm(Placement):
    """Normalizes what the sublayer reads and what it adds to the stream."""

    normalizes_input: ClassVar[bool] = True
    normalizes_output: ClassVar[bool] = True


class SandwichSumNorm(PostNorm):
    """Normalizes what the sublayer reads, and the stream after the addition."""

    normalizes_input: ClassVar[bool] = True


@bounded
def build(
    after: Literal["branch", "addition"] = "branch",
    *,
    norm: registry.Spec = "rms",
    param_dtype: Any = jnp.float32,
    name: str | None = None,
    parent: Any = dataclasses.MISSING,
) -> Placement:
    """The sandwich placement: a norm before every sublayer, and one after.

        x = x + norm_out(f(norm_in(x)))     after="branch"
        x = norm_out(x + f(norm_in(x)))     after="addition"

    In the first form each addition has a size that only the output norm's gain
    decides, so the variance of the stream grows at most linearly with depth. In the
    second no final norm follows the last layer.

    Reference: Ding et al., 2021, https://arxiv.org/abs/2105.13290. Checked against
    the "sandwich" block of the LayerNorm-Scaling authors' code; after the addition:
    Geiping et al., 2025, https://arxiv.org/abs/2502.05171, Section 3.2.

    Args:
      after: What the second norm follows.
      norm: Spec of the normalization.
      param_dtype: Dtype in which the norms' parameters are stored.
      name: Linen's name of the module.
      parent: Linen's parent of the module.
    """
    kind = SandwichNorm if after == "branch" else SandwichSumNorm
    return make_kind(kind, parent, norm=norm, param_dtype=param_dtype, name=name)
