"""The feed-forward layer with a sum of normalized powers (Zhuo et al., 2024)."""

import jax
import jax.numpy as jnp

from reslab.core.bounds import Epsilon, bounded
from reslab.nn.ffns._polynomial import PolynomialFeedForward


@bounded
class PolyNormFeedForward(PolynomialFeedForward):
    """Widens, adds up normalized powers with learned weights, and narrows.

        h = x . W_up
        y = (a_0 + sum_(i=1..3) a_i h^i / sqrt(mean(h^(2 i)) + epsilon)) . W_down

    Each power is divided by its own root mean square over the hidden width, so the
    three terms are equally large whatever the size of `h`. Powers and means are taken
    in float32 (which `h` above 2e6 would overflow), the products in `dtype`.

    Reference: Zhuo et al., 2024, https://arxiv.org/abs/2411.03884.

    Tested against the authors' code, which lists the coefficients from the cubic one
    down and keeps the constant apart.

    Attributes:
      epsilon: Added to the mean squares before the root.
      (and those of `PolynomialFeedForward`)
    """

    epsilon: Epsilon = 1e-6

    def powers(self, h: jax.Array) -> list[jax.Array]:
        """Powers divided by their root mean squares."""

        def normalized(power):
            mean_square = jnp.mean(jnp.square(power), axis=-1, keepdims=True)
            return power * jax.lax.rsqrt(mean_square + self.epsilon)

        square = h * h
        return [normalized(power) for power in (h, square, square * h)]


build = PolyNormFeedForward
