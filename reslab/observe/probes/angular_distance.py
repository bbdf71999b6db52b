"""Angles between the inputs of layers."""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from reslab.observe.probes._view import Quantity, View, norms


class AngularDistanceProbe:
    """Angles between what every two layers read.

        all       = mean over tokens of arccos(cos(x_l, x_m)) / pi
        last      = the same over the last token of each sequence only
        influence = 1 - mean over tokens of cos(x_l, x_(l+1))

    A small distance between x_l and x_(l+n) says that the n layers between change
    little. The authors' code uses the last token alone and does not clamp the
    cosine, which can give NaN; here it is clamped to [-1, 1].

    Reference: Gromov et al., 2024, https://arxiv.org/abs/2403.17887; Men et al.,
    2024, https://arxiv.org/abs/2403.03853 (block influence).
    """

    quantities: ClassVar[Mapping[str, Quantity]] = {
        "all": Quantity("angular distance between layers", "layer x layer"),
        "last": Quantity(
            "angular distance between layers, last tokens", "layer x layer"
        ),
        "influence": Quantity("influence of a layer", "layer"),
    }

    def __call__(self, view: View) -> dict[str, jax.Array]:
        """Takes cosines in float32, one layer against all others at a time."""
        x = view.trace.layer_stream.astype(jnp.float32)
        x = x / jnp.maximum(norms(x), 1e-30)[..., None]

        def against_all(y):
            cosine = jnp.clip(jnp.sum(x * y[None], axis=-1), -1.0, 1.0)
            angle = jnp.arccos(cosine) / jnp.pi
            return {
                "all": view.mean(angle),
                "last": view.mean(angle[..., -1:], slice(-1, None)),
                "cosine": view.mean(cosine),
            }

        result = jax.lax.map(against_all, x)
        # Rounding gives an angle of 1e-4 between a vector and itself.
        apart = ~jnp.eye(x.shape[0], dtype=bool)
        result |= {key: jnp.where(apart, result[key], 0.0) for key in ("all", "last")}
        following = jnp.diagonal(result.pop("cosine"), offset=1)
        return {**result, "influence": 1 - following}


build = AngularDistanceProbe
