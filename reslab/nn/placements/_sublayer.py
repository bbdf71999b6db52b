"""The table that placements are rows of."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.surroundings import Context
from reslab.core.types import Branch, Residual, Stream
from reslab.nn.base.norm import make_norm, needs_batch


class Placement(nn.Module):
    """Applies one sublayer to the stream, with norms where its row says.

        stream = stream_norm(residual(stream, h -> output_norm(f(input_norm(h)))))

    A placement that fits no row overrides `__call__`; one whose layers differ has a
    `build` that depends on `layer`.

    Attributes:
      norm: Spec of the normalization.
      param_dtype: Dtype in which the norms' parameters are stored.
    """

    norm: registry.Spec = "rms"
    param_dtype: Any = jnp.float32

    normalizes_input: ClassVar[bool] = False
    normalizes_output: ClassVar[bool] = False
    normalizes_stream: ClassVar[bool] = False
    # Whether a norm must follow the last layer.
    needs_final_norm: ClassVar[bool] = True

    @property
    def has_norms(self) -> bool:
        """Returns whether there is a norm around a sublayer."""
        return self.normalizes_input or self.normalizes_output or self.normalizes_stream

    @property
    def normalizes_embedding(self) -> bool:
        """Returns whether the features before the first layer need a norm."""
        return False

    def adapt(self, context: Context) -> Context:
        """Adapts the context of the sublayer's parts; unchanged by default."""
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
        """Applies `branch` at the given site and returns the new stream.

        Args:
          stream: The residual stream.
          residual: How it is read and written.
          branch: The sublayer.
          site: Number of the sublayer, from 0.
        """
        wrapped = branch
        if self.normalizes_input:
            wrapped = _compose(_each(self._input_norm(site)), wrapped)
        if self.normalizes_output:
            wrapped = _compose(wrapped, self._norm("output_norm"))
        stream = residual(stream, wrapped, site=site)
        if self.normalizes_stream:
            stream = self._normalized_stream(stream)
        return stream

    def _input_norm(self, site: int | jax.Array) -> Branch:
        """Returns the norm before the sublayer; scaling placements override it."""
        del site
        return self._norm("input_norm")

    def _normalized_stream(self, stream: Stream) -> Stream:
        """Normalizes every part of the stream by one norm."""
        if len(jax.tree.leaves(stream)) > 1 and needs_batch(self.norm):
            raise ReslabError(
                f"{type(self).__name__} normalizes several streams by one norm",
                expected="a norm of one token",
                got=repr(self.norm),
                hint="placement pre, or residual plain",
            )
        return jax.tree.map(self._norm("stream_norm"), stream)

    def _norm(self, name: str) -> Branch:
        return make_norm(
            self.norm, has_mask=True, param_dtype=self.param_dtype, name=name
        )


def _each(norm: Branch) -> Branch:
    """The norm of every array, where a mixer is given several."""
    return lambda h: jax.tree.map(norm, h)


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
