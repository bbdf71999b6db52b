"""The table that placements are rows of."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core import registry
from reslab.core.types import Branch, Residual, Stream


class Placement(nn.Module):
    """Applies one sublayer to the stream, with norms where its row says.

        stream = stream_norm(residual(stream, h -> output_norm(f(input_norm(h)))))

    A placement that fits no row overrides `__call__`.

    Attributes:
      norm: Spec of the normalization.
      param_dtype: Dtype in which the norms' parameters are stored.
    """

    norm: registry.Spec = "rms"
    param_dtype: Any = jnp.float32

    normalizes_input: ClassVar[bool] = False
    normalizes_output: ClassVar[bool] = False
    normalizes_stream: ClassVar[bool] = False
    # Whether the features after the last layer still need a norm.
    needs_final_norm: ClassVar[bool] = True

    @nn.compact
    def __call__(
        self,
        stream: Stream,
        residual: Residual,
        branch: Branch,
        *,
        site: int | jax.Array,
    ) -> Stream:
        """Applies `branch` at the given site and returns the new stream."""
        wrapped = branch
        if self.normalizes_input:
            input_norm = self._norm("input_norm")
            wrapped = _compose(input_norm, wrapped)
        if self.normalizes_output:
            wrapped = _compose(wrapped, self._norm("output_norm"))
        stream = residual(stream, wrapped, site=site)
        if self.normalizes_stream:
            stream = jax.tree.map(self._norm("stream_norm"), stream)
        return stream

    def _norm(self, name: str) -> nn.Module:
        return registry.make(
            "norms", self.norm, param_dtype=self.param_dtype, name=name
        )


def _compose(first: Branch, second: Branch) -> Branch:
    return lambda h: second(first(h))
