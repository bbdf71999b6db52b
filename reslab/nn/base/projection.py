"""Base of parts with projections: linear, dtype and initialization."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core import registry, surroundings
from reslab.core.bounds import NonNegative, bounded
from reslab.nn.base.norm import make_norm


@bounded
class ProjectingModule(nn.Module):
    """Base of mixers and ffns: makes their projections through the registry.

    Attributes:
      linear: What a projection is.
      init_std: Initial standard deviation of the projections; 0 is 1/sqrt(fan in).
      output_scale: The same factor for the projection into the residual stream.
      inner_scale: The same factor for values and for projections that widen.
      inner_norm: Norm before the projection into the stream; "" disables it.
      dtype: Compute dtype.
      param_dtype: Dtype in which parameters are stored.
    """

    linear: registry.Spec = "dense"
    init_std: NonNegative = 0.0
    output_scale: NonNegative = 1.0
    inner_scale: float = 1.0
    inner_norm: registry.Spec = ""
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def normalize_inner(self, x: jax.Array, logical_axis: str) -> jax.Array:
        """Applies the inner norm over the last axis of `x`, if there is one."""
        if not self.inner_norm:
            return x
        return make_norm(
            self.inner_norm,
            **surroundings.Norms(logical_axis=logical_axis),
            param_dtype=self.param_dtype,
            name="inner_norm",
        )(x)

    def project(
        self,
        name: str,
        x: jax.Array,
        features: int | Sequence[int],
        kernel_axes: Sequence[str | None],
        *,
        use_bias: bool = False,
        scale: float = 1.0,
    ) -> jax.Array:
        """Applies a new projection called `name` to `x`.

        Args:
          name: Name of the submodule.
          x: The input.
          features: Shape of the output axes.
          kernel_axes: Logical names of the kernel's axes.
          use_bias: Whether to add a learned bias.
          scale: Factor on the initial standard deviation.

        Returns:
          The projected array, in `dtype`.
        """
        return registry.make(
            "linears",
            self.linear,
            **surroundings.Linears(
                features=features, kernel_axes=tuple(kernel_axes), role=name
            ),
            use_bias=use_bias,
            scale=scale,
            init_std=self.init_std,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            # Otherwise it would be a submodule of the caller.
            parent=self,
            name=name,
        )(x)
