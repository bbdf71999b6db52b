"""Predictions of the model after each depth."""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from reslab.observe.probes._view import Quantity, View

_TOP = 5


class LogitLensProbe:
    """Compares the predictions read off the stream at every depth to the last ones.

        lens(x)       = head(final_norm(x))
        kl_from_final = KL(lens || final), the direction that published code prints
        kl_to_final   = KL(final || lens)
        top_five      = share of the five likeliest tokens that both have
        settled       = share of tokens whose likeliest one no longer changes
        exits         = share of tokens that settle exactly here

    `settled` and `exits` are by token: the depth at which an early exit would lose
    nothing.

    Reference: nostalgebraist, 2020 (the lens); Csordás et al., 2025,
    https://arxiv.org/abs/2505.13898; Schuster et al., 2022,
    https://arxiv.org/abs/2207.07061 (exit by token).
    """

    quantities: ClassVar[Mapping[str, Quantity]] = {
        "kl_from_final": Quantity("KL(lens || final)", "site"),
        "kl_to_final": Quantity("KL(final || lens)", "site"),
        "top_five": Quantity("overlap of the five likeliest tokens", "site"),
        "settled": Quantity("tokens whose prediction has settled", "site"),
        "exits": Quantity("tokens that settle here", "site"),
    }

    def __call__(self, view: View) -> dict[str, jax.Array]:
        """Reads one depth at a time; softmax in float32."""
        final = jax.nn.log_softmax(view.logits.astype(jnp.float32))
        _, final_top = jax.lax.top_k(final, _TOP)

        def compare(x):
            lens = jax.nn.log_softmax(view.lens(x).astype(jnp.float32))
            _, top = jax.lax.top_k(lens, _TOP)
            is_shared = jnp.any(top[..., :, None] == final_top[..., None, :], axis=-1)
            return {
                "kl_from_final": view.mean(jnp.sum(jnp.exp(lens) * (lens - final), -1)),
                "kl_to_final": view.mean(jnp.sum(jnp.exp(final) * (final - lens), -1)),
                "top_five": view.mean(jnp.mean(is_shared.astype(jnp.float32), -1)),
                "agrees": top[..., 0] == final_top[..., 0],
            }

        result = jax.lax.map(compare, view.trace.stream)
        agrees = result.pop("agrees")
        # Settled where this depth and all later ones agree with the last.
        is_settled = jnp.flip(
            jnp.cumprod(jnp.flip(agrees, 0).astype(jnp.int32), axis=0), 0
        )
        settled = view.mean(is_settled)
        exits = jnp.diff(settled, prepend=jnp.zeros(1, settled.dtype))
        return {**result, "settled": settled, "exits": exits}


build = LogitLensProbe
