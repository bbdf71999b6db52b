"""The table that placements are rows of."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core import registry
from reslab.core.types import Branch, Context, Residual, Stream
from reslab.nn.norm import make_norm


class Placement(nn.Module):
    """Applies one sublayer to the stream, with norms where its row says.

        stream = stream_norm(residual(stream, h -> output_norm(f(input_norm(h)))))

    A placement that fits no row overrides `__call__`; one whose layers differ has a
    `build` that looks at `layer`.

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

    @property
    def normalizes_embedding(self) -> bool:
        """Whether the features before the first layer need a norm."""
        return False

    def adapt(self, context: Context) -> Context:
        """What the sublayer's parts must know; as it is, unless a row says more."""
        return context

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
            wrapped = _compose(self._input_norm(site), wrapped)
        if self.normalizes_output:
            wrapped = _compose(wrapped, self._norm("output_norm"))
        stream = residual(stream, wrapped, site=site)
        if self.normalizes_stream:
            stream = jax.tree.map(self._norm("stream_norm"), stream)
        return stream

    def _input_norm(self, site: int | jax.Array) -> Branch:
        """What precedes the sublayer; rows that scale by depth override it."""
        del site
        return self._norm("input_norm")

    def _norm(self, name: str) -> nn.Module:
        return make_norm(self.norm, param_dtype=self.param_dtype, name=name)


def _compose(first: Branch, second: Branch) -> Branch:
    return lambda h: second(first(h))


def make_kind(
    kind: type[Placement], parent: Any = dataclasses.MISSING, **fields: Any
) -> Placement:
    """Builds the placement that a `build` has chosen, as Linen would have.

    Args:
      kind: Its class.
      parent: The module that it belongs to; Linen's choice if missing.
      **fields: Its other fields.
    """
    given = {} if parent is dataclasses.MISSING else {"parent": parent}
    return kind(**fields, **given)
