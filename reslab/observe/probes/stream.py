"""Size of the residual stream along depth."""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from reslab.observe.probes._view import Quantity, View, norms


class StreamProbe:
    """Norm and variance of what every sublayer reads from the stream.

        norm     = mean over tokens of ||x||
        variance = mean over tokens of the variance over features of x

    The first token of a document often has a norm of its own (it gathers
    attention), so the norm is given without it too. At the end of the stream `x` is
    what the final norm reads; a sum of n streams counts as their mean.

    Reference: Sun et al., 2025, https://arxiv.org/abs/2502.05795 (variance
    by layer).
    """

    quantities: ClassVar[Mapping[str, Quantity]] = {
        "norm": Quantity("norm of the residual stream", "site", True),
        "norm_after_first": Quantity(
            "norm of the residual stream, first tokens left out", "site", True
        ),
        "variance": Quantity("variance of the residual stream", "site", True),
    }

    def __call__(self, view: View) -> dict[str, jax.Array]:
        """Takes all statistics in float32."""
        stream = view.trace.stream
        sizes = norms(stream)
        return {
            "norm": view.mean(sizes),
            "norm_after_first": view.mean_after_first(sizes),
            "variance": view.mean(jnp.var(stream.astype(jnp.float32), axis=-1)),
        }


build = StreamProbe
