"""The two-matrix feed-forward layer with a squared ReLU (So et al., 2021)."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.nn.ffns._feed_forward import TwoMatrixFeedForward


class SquaredReLUFeedForward(TwoMatrixFeedForward):
    """Widens, squares what is positive, and narrows.

        y = relu(x . W_up)^2 . W_down

    Computed in `dtype`.

    Reference: So et al., 2021, https://arxiv.org/abs/2109.08668, Section 3 (Primer).
    Written from the equation; there is no golden file of the authors' code.

    Attributes:
      (those of `TwoMatrixFeedForward`)
    """

    degree: ClassVar[int] = 2

    def activate(self, h: jax.Array) -> jax.Array:
        """The square of the ReLU."""
        return jnp.square(nn.relu(h))


build = SquaredReLUFeedForward
