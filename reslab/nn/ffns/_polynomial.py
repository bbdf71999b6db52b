"""Base of polynomial composition activations (Zhuo et al., 2024)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from reslab.core.parameters import parameter
from reslab.core.precision import statistics_dtype
from reslab.nn.ffns._feed_forward import TwoMatrixFeedForward

ORDER = 3


class PolynomialFeedForward(TwoMatrixFeedForward):
    """Base of the layers whose activation is a learned polynomial of order three.

        activate(h) = a_0 + sum_(i=1..3) a_i power_i(h)

    The coefficients are (a_0, ..., a_3), 0 and three times 1/3 at the start. Powers
    and sum are taken in float32, the result has the dtype of `h`. The powers are
    computed again in the backward pass, as the authors advise: kept, they would be
    three more arrays of the hidden width.

    Attributes:
      (those of `TwoMatrixFeedForward`)
    """

    def powers(self, h: jax.Array) -> list[jax.Array]:
        """The terms of the orders 1, 2 and 3, each of the shape of `h`."""
        raise NotImplementedError

    def activate(self, h: jax.Array) -> jax.Array:
        """The polynomial."""
        coefficients = parameter(
            self, "coefficients", _init, (ORDER + 1,), (None,), self.param_dtype
        )
        return _polynomial(self.powers, h, coefficients)


def _polynomial(
    powers: Callable[[jax.Array], list[jax.Array]],
    h: jax.Array,
    coefficients: jax.Array,
) -> jax.Array:
    @jax.checkpoint
    def evaluate(h, coefficients):
        wide = h.astype(statistics_dtype(h.dtype))
        constant, *factors = coefficients.astype(wide.dtype)
        total = jnp.broadcast_to(constant, wide.shape)
        for factor, power in zip(factors, powers(wide), strict=True):
            total = total + factor * power
        return total.astype(h.dtype)

    return evaluate(h, coefficients)


def _init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    del key
    return jnp.full(shape, 1 / ORDER, dtype).at[0].set(0)
