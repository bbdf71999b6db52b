"""Kurtosis of the activations."""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from reslab.observe.probes._view import Quantity, View


class KurtosisProbe:
    """Excess kurtosis over the features of the stream, averaged over tokens.

        excess = max(mean(x**4) / std(x)**4 - 3, 0)

    0 for a normal distribution; large where few features carry most of the energy.
    The authors' code takes the fourth moment about zero and the standard deviation
    with n - 1, and clamps at zero; so does this by default.

    Reference: Park et al., 2025, https://arxiv.org/abs/2506.19697, and its code
    (evaluate_kurtosis.py), which feeds one token at a time: here tokens have their
    context.

    Attributes:
      centred: Whether the fourth moment is taken about the mean.
    """

    quantities: ClassVar[Mapping[str, Quantity]] = {
        "excess": Quantity("excess kurtosis of the stream", "site", True)
    }

    def __init__(self, centred: bool = False):
        self.centred = centred

    def __call__(self, view: View) -> dict[str, jax.Array]:
        """Takes all moments in float32."""
        x = view.trace.stream.astype(jnp.float32)
        # Scaled first: a fourth power leaves the range of float32 at 1e10.
        x = x / jnp.maximum(jnp.max(jnp.abs(x), axis=-1, keepdims=True), 1e-30)
        around = x - jnp.mean(x, axis=-1, keepdims=True) if self.centred else x
        fourth = jnp.mean(jnp.square(jnp.square(around)), axis=-1)
        variance = jnp.maximum(jnp.var(x, axis=-1, ddof=1), 1e-30)
        excess = fourth / jnp.square(variance) - 3
        return {"excess": view.mean(jnp.maximum(excess, 0.0))}


build = KurtosisProbe
