"""Loss without each layer."""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from reslab.observe.probes._view import Quantity, View


class LayerRemovalProbe:
    """The rise of the loss when one layer is left out, for every layer.

        increase[l] = loss without layer l - loss        (nats per token)

    The stream passes by the layer; nothing is trained again. It costs one forward
    pass for each layer.

    Reference: Sun et al., 2025, https://arxiv.org/abs/2502.05795, and its
    code (layer_remove.py), which gives the change of the perplexity.
    """

    quantities: ClassVar[Mapping[str, Quantity]] = {
        "increase": Quantity("loss added by removing a layer", "layer")
    }

    def __call__(self, view: View) -> dict[str, jax.Array]:
        """Runs the forward passes one after the other."""
        removals = jnp.eye(view.trace.layers, dtype=bool)
        return {"increase": jax.lax.map(view.loss_without, removals) - view.loss()}


build = LayerRemovalProbe
