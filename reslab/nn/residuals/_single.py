"""Base of residuals of one stream: its ends, and scales on the branch."""

from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.parameters import parameter
from reslab.core.precision import statistics_dtype
from reslab.core.types import Branch


class SingleStream(nn.Module):
    """Base of residuals whose stream is one array, as wide as the embeddings.

    Attributes:
      param_dtype: Dtype in which parameters are stored.
    """

    param_dtype: Any = jnp.float32

    reduces_to_plain_at_init: ClassVar[bool] = False

    def widen(self, x: jax.Array) -> jax.Array:
        """The embeddings are the stream."""
        return x

    def narrow(self, stream: jax.Array) -> jax.Array:
        """The stream is the features."""
        return stream


class ScaledBranch(SingleStream):
    """Base of residuals that multiply the branch by a learned scale.

        x = x + scale * f(x)

    The sum is taken in float32 and stored in the stream's dtype. A subclass says in
    `first_scale` where the scale starts.
    """

    # Whether each feature has its own scale.
    scales_features: ClassVar[bool] = False

    def first_scale(self) -> float:
        """The scale at initialization."""
        return 0.0

    @nn.compact
    def __call__(
        self, stream: jax.Array, branch: Branch, *, site: int | jax.Array
    ) -> jax.Array:
        """Returns `stream + scale * branch(stream)`, whatever the site."""
        del site
        axes: Sequence[str] = ("embed",) if self.scales_features else ()
        scale = parameter(
            self,
            "scale",
            nn.initializers.constant(self.first_scale()),
            [stream.shape[-1]] * len(axes),
            axes,
            self.param_dtype,
        )
        dtype = statistics_dtype(stream.dtype)
        scaled = branch(stream).astype(dtype) * _fit(scale.astype(dtype), stream.ndim)
        return (stream.astype(dtype) + scaled).astype(stream.dtype)


def _fit(scale: jax.Array, ndim: int) -> jax.Array:
    """A scale of one or of every feature, with leading axes to meet a stream."""
    return scale.reshape((1,) * (ndim - scale.ndim) + scale.shape)
