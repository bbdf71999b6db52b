"""A gated feed-forward layer with both halves bounded (SiTU-GLU)."""

from typing import ClassVar

import jax
import jax.numpy as jnp

from reslab.core.bounds import Positive, bounded
from reslab.core.precision import statistics_dtype
from reslab.nn.ffns._feed_forward import GatedFeedForward


@bounded
class SiTUGLU(GatedFeedForward):
    """Widens twice, bounds both halves by tanh, gates one by the other, and narrows.

        g = gate_bound tanh(x . W_gate / gate_bound) sigmoid(x . W_gate)
        u = up_bound tanh(x . W_up / up_bound)
        y = (g * u) . W_down

    Every hidden feature is below gate_bound * up_bound in size; for small inputs the
    layer is `swiglu`. Both are taken in float32 at least, everything else in `dtype`.

    Reference: Moonshot AI, 2026, https://arxiv.org/abs/2607.24653 (Kimi K3). Written
    from the equation; there is no golden file of the authors' code.

    Attributes:
      gate_bound: Bound of the gate.
      up_bound: Bound of the other half.
      (and those of `GatedFeedForward`)
    """

    gate_bound: Positive = 4.0
    up_bound: Positive = 25.0

    degree: ClassVar[int] = 1

    def gated(self, gate: jax.Array, up: jax.Array) -> jax.Array:
        """The product of both bounded halves."""
        wide = statistics_dtype(gate.dtype)
        g, u = gate.astype(wide), up.astype(wide)
        g = self.gate_bound * jnp.tanh(g / self.gate_bound) * jax.nn.sigmoid(g)
        u = self.up_bound * jnp.tanh(u / self.up_bound)
        return (g * u).astype(gate.dtype)


build = SiTUGLU
