"""Massive activations: the few that exceed the others by orders of magnitude."""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from reslab.observe.probes._view import Quantity, View


class MassiveProbe:
    """The largest magnitudes in the stream, beside the typical one.

        first, second, third = the largest |x| over tokens and features
        median               = mean over tokens of the median over features of |x|
        count                = activations with |x| > 100 and |x| > 1000 * median

    The median is taken per token, so that no device must see all tokens.
    float16 ends at 65504.

    Reference: Sun et al., 2024, https://arxiv.org/abs/2402.17762 (the thresholds);
    Kim et al., 2025, https://arxiv.org/abs/2502.02732 (along depth).
    """

    quantities: ClassVar[Mapping[str, Quantity]] = {
        "first": Quantity("largest activation", "site", True),
        "second": Quantity("second largest activation", "site", True),
        "third": Quantity("third largest activation", "site", True),
        "median": Quantity("median activation", "site", True),
        "count": Quantity("massive activations", "site"),
    }

    def __call__(self, view: View) -> dict[str, jax.Array]:
        """Takes magnitudes in float32."""
        size = jnp.abs(view.trace.stream.astype(jnp.float32))
        size = jnp.where(view.is_counted[..., None], size, 0.0)
        of_token = jax.lax.top_k(size, 3)[0]
        largest = jax.lax.top_k(of_token.reshape(size.shape[0], -1), 3)[0]
        median = jnp.median(size, axis=-1)
        is_massive = (size > 100.0) & (size > 1000.0 * median[..., None])
        return {
            "first": largest[:, 0],
            "second": largest[:, 1],
            "third": largest[:, 2],
            "median": view.mean(median),
            "count": jnp.sum(is_massive, axis=(1, 2, 3)),
        }


build = MassiveProbe
