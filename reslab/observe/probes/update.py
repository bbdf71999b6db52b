"""Size of a step's update of each layer."""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from reslab.core.depth import sum_by_layer
from reslab.observe.probes._view import Quantity, View
from reslab.observe.probes.gradient import sum_of_squares


class UpdateProbe:
    """The size of the next update relative to the parameters, by layer.

        ratio = ||update of the layer|| / ||parameters of the layer||

    The update is what the optimizer does with the batch that comes next, learning
    rate, clipping and weight decay included.

    Reference: You et al., 2017, https://arxiv.org/abs/1708.03888 (the ratio of
    norms by layer).
    """

    quantities: ClassVar[Mapping[str, Quantity]] = {
        "ratio": Quantity("update relative to the parameters of a layer", "layer", True)
    }

    def __call__(self, view: View) -> dict[str, jax.Array]:
        """Takes squares and sums in float32."""
        gradient, _ = view.training_gradient
        update = sum_by_layer(sum_of_squares, view.update(gradient))
        size = sum_by_layer(sum_of_squares, view.params)
        return {"ratio": jnp.sqrt(update / jnp.maximum(size, 1e-30))}


build = UpdateProbe
