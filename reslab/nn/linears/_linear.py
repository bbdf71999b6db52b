"""Base of projections: axes, initial scale and bias."""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.bounds import NonNegative, bounded
from reslab.core.parameters import parameter


@bounded
class LinearModule(nn.Module):
    """Base of projections of the last axes of the input.

    Attributes:
      features: Shape of the output axes.
      kernel_axes: Logical names of a kernel's axes; those beyond the output
        axes are contracted with the last axes of the input.
      use_bias: Whether to add a learned bias.
      scale: Factor on the initial standard deviation.
      init_std: Initial standard deviation of a kernel's entries; 0 is 1/sqrt(fan in).
      dtype: Compute dtype.
      param_dtype: Dtype in which parameters are stored.
    """

    features: int | Sequence[int]
    kernel_axes: Sequence[str | None] = ("embed", "mlp")
    use_bias: bool = False
    scale: NonNegative = 1.0
    init_std: NonNegative = 0.0
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @property
    def outputs(self) -> tuple[int, ...]:
        """Shape of the output axes."""
        if isinstance(self.features, int):
            return (self.features,)
        return tuple(self.features)

    @property
    def input_axes(self) -> tuple[str | None, ...]:
        """Logical names of the contracted axes."""
        return tuple(self.kernel_axes[: len(self.kernel_axes) - len(self.outputs)])

    @property
    def output_axes(self) -> tuple[str | None, ...]:
        """Logical names of the output axes."""
        return tuple(self.kernel_axes[len(self.kernel_axes) - len(self.outputs) :])

    def inputs_of(self, x: jax.Array) -> tuple[int, ...]:
        """Shape of the contracted axes of `x`."""
        return x.shape[x.ndim - len(self.input_axes) :]

    def kernel_std(self, inputs: Sequence[int]) -> float:
        """Initial standard deviation of the entries of a kernel with these inputs."""
        return (self.init_std or 1 / math.sqrt(math.prod(inputs))) * self.scale

    def used(self, value: jax.Array) -> jax.Array:
        """Returns a kernel or bias as it is applied; as it is stored by default."""
        return value

    def add_bias(self, y: jax.Array) -> jax.Array:
        """Adds the bias to the output, if there is one; it starts at zero."""
        if not self.use_bias:
            return y
        bias = parameter(
            self,
            "bias",
            nn.initializers.zeros,
            self.outputs,
            self.output_axes,
            self.param_dtype,
        )
        lead = (1,) * (y.ndim - len(self.outputs))
        return y + self.used(bias).astype(self.dtype).reshape(lead + self.outputs)
