"""The feed-forward layer with a polynomial of the ReLU (Zhuo et al., 2024)."""

from typing import ClassVar

import flax.linen as nn
import jax

from reslab.nn.ffns._polynomial import ORDER, PolynomialFeedForward


class PolyReLUFeedForward(PolynomialFeedForward):
    """Widens, applies a learned cubic of the ReLU, and narrows.

        y = (a_0 + sum_(i=1..3) a_i relu(x . W_up)^i) . W_down

    The polynomial is computed in float32, the products in `dtype`.

    Reference: Zhuo et al., 2024, https://arxiv.org/abs/2411.03884.

    Tested against the authors' code, which lists the coefficients from the cubic one
    down and keeps the constant apart.

    Attributes:
      (those of `PolynomialFeedForward`)
    """

    degree: ClassVar[int] = ORDER

    def powers(self, h: jax.Array) -> list[jax.Array]:
        """Powers of what is positive."""
        positive = nn.relu(h)
        square = positive * positive
        return [positive, square, square * positive]


build = PolyReLUFeedForward
