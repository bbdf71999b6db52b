"""Gradient of the training loss along depth."""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from reslab.core.depth import sum_by_layer
from reslab.observe.probes._view import Quantity, View


class GradientProbe:
    """Norm of the training loss's gradient by each layer's parameters and stream.

        norm   = sqrt(sum of squares over all parameters of the layer)
        stream = norm of the gradient by the stream that a sublayer reads

    Both are of the batch that the next step trains on, before clipping.

    Reference: Xiong et al., 2020, https://arxiv.org/abs/2002.04745; Li et al., 2024,
    https://arxiv.org/abs/2412.13795 (norm by layer).
    """

    quantities: ClassVar[Mapping[str, Quantity]] = {
        "norm": Quantity("gradient norm of a layer's parameters", "layer", True),
        "stream": Quantity("gradient norm by the stream", "sublayer", True),
    }

    def __call__(self, view: View) -> dict[str, jax.Array]:
        """Takes squares and sums in float32."""
        params, streams = view.training_gradient
        return {
            "norm": jnp.sqrt(sum_by_layer(sum_of_squares, params)),
            "stream": jnp.sqrt(streams),
        }


def sum_of_squares(x: jax.Array) -> jax.Array:
    """The squared norm of an array, in float32."""
    return jnp.sum(jnp.square(x.astype(jnp.float32)))


build = GradientProbe
