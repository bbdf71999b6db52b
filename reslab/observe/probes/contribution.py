"""Size and direction of the contributions of sublayers and layers."""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from reslab.observe.probes._view import Quantity, View, cosines, norms


class ContributionProbe:
    """Size and direction of what is added, relative to what is there.

        relative = mean over tokens of ||f|| / ||x||
        cosine   = mean over tokens of cos(f, x)

    For a sublayer, `x` is what it reads and `f` what it returns to the residual;
    for a layer, `f` is the difference between what the next layer and what this
    one reads, whatever the residual and the norms did in between. A cosine of 0
    means new directions, below 0 erasing, above 0 strengthening.

    Reference: Csordás et al., 2025, https://arxiv.org/abs/2505.13898.
    """

    quantities: ClassVar[Mapping[str, Quantity]] = {
        "relative": Quantity("relative contribution of a sublayer", "sublayer", True),
        "cosine": Quantity("cosine of a sublayer's output and the stream", "sublayer"),
        "layer_relative": Quantity("relative contribution of a layer", "layer", True),
        "layer_cosine": Quantity("cosine of a layer's change and the stream", "layer"),
    }

    def __call__(self, view: View) -> dict[str, jax.Array]:
        """Takes all statistics in float32; ratios are averaged, not divided means."""
        trace = view.trace
        layers = trace.layer_stream.astype(jnp.float32)
        change = layers[1:] - layers[:-1]
        return {
            "relative": view.mean(_ratio(trace.outputs, trace.readings)),
            "cosine": view.mean(cosines(trace.outputs, trace.readings)),
            "layer_relative": view.mean(_ratio(change, layers[:-1])),
            "layer_cosine": view.mean(cosines(change, layers[:-1])),
        }


def _ratio(part: jax.Array, whole: jax.Array) -> jax.Array:
    return norms(part) / jnp.maximum(norms(whole), 1e-6)


build = ContributionProbe
