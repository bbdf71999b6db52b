"""Parameters of layers of experts: their matrices, and the router's."""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.parameters import parameter


class Kernels(NamedTuple):
    """The matrices of all experts of a layer.

    Attributes:
      gate: (experts, in, hidden), before the activation.
      up: (experts, in, hidden).
      down: (experts, hidden, in).
    """

    gate: jax.Array
    up: jax.Array
    down: jax.Array


class ExpertKernels(nn.Module):
    """One matrix of every expert.

    Attributes:
      experts: Number of experts.
      inputs: Size of the input.
      features: Size of the output.
      axes: Logical names of a matrix's axes.
      std: Initial standard deviation; 0 is 1/sqrt(fan in).
      scale: Factor on it.
      param_dtype: Dtype in which parameters are stored.
    """

    experts: int
    inputs: int
    features: int
    axes: tuple[str, str]
    std: float = 0.0
    scale: float = 1.0
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self) -> jax.Array:
        """The matrices (experts, inputs, features)."""
        std = self.std or 1 / math.sqrt(self.inputs)
        return parameter(
            self,
            "kernels",
            nn.initializers.normal(self.scale * std),
            (self.experts, self.inputs, self.features),
            ("experts", *self.axes),
            self.param_dtype,
        )


class Router(nn.Module):
    """Projects tokens to a score of every expert, in the dtype of the input.

    Attributes:
      experts: Number of experts.
      std: Initial standard deviation; 0 is 1/sqrt(fan in).
      param_dtype: Dtype in which parameters are stored.
      axis: Logical name of the input's features.
    """

    experts: int
    std: float = 0.0
    param_dtype: Any = jnp.float32
    axis: str | None = "embed"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., embed) to (..., experts)."""
        std = self.std or 1 / math.sqrt(x.shape[-1])
        kernel = parameter(
            self,
            "kernel",
            nn.initializers.normal(std),
            (x.shape[-1], self.experts),
            (self.axis, None),
            self.param_dtype,
        )
        return x @ kernel.astype(x.dtype)
