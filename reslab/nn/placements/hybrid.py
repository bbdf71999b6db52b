"""HybridNorm: norms on queries, keys and values; post-norm in between (Zhuo et al.)."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax

from reslab.core.surroundings import Context
from reslab.core.types import Branch, Residual, Stream
from reslab.nn.placements._sublayer import Placement
from reslab.nn.placements.pre import PreNorm


class HybridNorm(Placement):
    """Normalizes inside attention, and the stream before the feed-forward layer.

        y = x + attention_qkv(x)
        n = norm(y)
        x = n + f(n)

    Queries, keys and values are normalized per head before the position is applied.
    The norm on y replaces the stream: the feed-forward layer adds to what it reads,
    which is not the usual post-norm. The first attention reads the embedding as it
    is.

    Reference: Zhuo et al., 2025, https://arxiv.org/abs/2503.04598. Checked against the
    authors' code.

    Attributes:
      sublayer: Which sublayer this is; all but the mixer take the stream's norm.
      (and those of `Placement`)
    """

    sublayer: str = "ffn"

    normalizes_stream: ClassVar[bool] = True

    def adapt(self, context: Context) -> Context:
        """Queries, keys and values have norms of their own."""
        return dataclasses.replace(context, qkv_norm=self.norm)

    @nn.compact
    def __call__(
        self,
        stream: Stream,
        residual: Residual,
        branch: Branch,
        *,
        site: int | jax.Array,
    ) -> Stream:
        """Applies `branch` to the stream, normalized unless it is the mixer's."""
        if self.sublayer != "mixer":
            stream = self._normalized_stream(stream)
        return residual(stream, branch, site=site)


class HybridFirst(PreNorm):
    """The first layer of HybridNorm*: pre-norm, and norms inside attention."""

    def adapt(self, context: Context) -> Context:
        """Queries, keys and values have norms of their own."""
        return dataclasses.replace(context, qkv_norm=self.norm)


build = HybridNorm
