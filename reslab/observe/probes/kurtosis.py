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
    (evaluate_kurtosis.py), which feeds one token at a time (`is_alone`), so its figures
    are of tokens without context. Tested against the expression in that code.

    Attributes:
      centred: Whether the fourth moment is taken about the mean.
      is_alone: Whether every token is a document of its own.
    """

    quantities: ClassVar[Mapping[str, Quantity]] = {
        "excess": Quantity("excess kurtosis of the stream", "site", True)
    }

    def __init__(self, centred: bool = False, is_alone: bool = False):
        self.centred = centred
        self.is_alone = is_alone

    def __call__(self, view: View) -> dict[str, jax.Array]:
        """Takes all moments in float32."""
        trace = view.trace_alone if self.is_alone else view.trace
        x = trace.stream.astype(jnp.float32)
        return {"excess": view.mean(excess_kurtosis(x, self.centred))}


def excess_kurtosis(x: jax.Array, centred: bool = False) -> jax.Array:
    """Excess kurtosis of every vector (..., features), at least 0.

    Args:
      x: The vectors, float32 or float64.
      centred: Whether the fourth moment is taken about the mean.
    """
    # Scaled first: a fourth power leaves the range of float32 at 1e10.
    x = x / jnp.maximum(jnp.max(jnp.abs(x), axis=-1, keepdims=True), 1e-30)
    around = x - jnp.mean(x, axis=-1, keepdims=True) if centred else x
    fourth = jnp.mean(jnp.square(jnp.square(around)), axis=-1)
    variance = jnp.maximum(jnp.var(x, axis=-1, ddof=1), 1e-30)
    return jnp.maximum(fourth / jnp.square(variance) - 3, 0.0)


build = KurtosisProbe
