"""Norms of their own for passes over shared layers."""

import functools
from typing import Any

import flax.linen as nn
import jax

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.trees import unbox
from reslab.nn.base.norm import make_norm
from reslab.nn.stacks._loops.span import BlockFactory, unbound


class NormOfEachPass(nn.Module):
    """A norm with parameters of its own in each pass.

    Attributes:
      norm: Spec of the norm.
      passes: Number of passes.
      logical_axis: Logical name of the features.
      param_dtype: Dtype in which parameters are stored.
    """

    norm: registry.Spec
    passes: int
    logical_axis: str = "embed"
    param_dtype: Any = jax.numpy.float32

    @nn.compact
    def __call__(self, x: jax.Array, pass_index: int | jax.Array = 0) -> jax.Array:
        """Normalizes `x` of shape (..., features) in the pass of this number."""
        kept = {"logical_axis": self.logical_axis, "param_dtype": self.param_dtype}
        make = functools.partial(make_norm, self.norm, **kept)
        if self.is_initializing():
            each = nn.vmap(
                lambda module, x: make(name="pass_norm")(x),
                in_axes=None,
                axis_size=self.passes,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                metadata_params={nn.PARTITION_NAME: None},
            )
            return each(self, x)[0]
        rows = unbox(dict(self.variables.get("params", {}).get("pass_norm", {})))
        own = jax.tree.map(
            lambda a: jax.lax.dynamic_index_in_dim(a, pass_index, keepdims=False), rows
        )
        norm: Any = make(parent=None)
        return norm.apply({"params": own}, x)


@functools.lru_cache(maxsize=1024)
def with_own_norms(block: BlockFactory, passes: int, where: str) -> BlockFactory:
    """The same block with norms of each pass around sublayers; one for one block.

    Args:
      block: The block.
      passes: Number of passes.
      where: What it is told of.

    Raises:
      ReslabError: If passes cannot have such a norm of their own.
    """
    spec = unbound(block).norm
    norm, reason = registry.unbound("norms", spec), ""
    if getattr(norm, "needs_batch", False):
        reason = "statistics of a batch, which passes would mix"
    if reason:
        raise ReslabError(
            f"{where}: norm {spec!r}",
            expected="a norm of one token, which each pass can have",
            got=reason,
            hint="norm rms or layer",
        )
    each = functools.partial(NormOfEachPass, norm=spec, passes=passes)
    return functools.partial(block, norm=each)
