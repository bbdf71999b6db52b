"""A gated recurrent unit with layer normalization inside."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from reslab.core.bounds import bounded
from reslab.nn.mixers._cells import Cell, CellMixer


class GRUCell(Cell):
    """One step of the unit."""

    @nn.compact
    def __call__(self, state, inputs):
        """Steps from an output (batch, hidden)."""
        h, (gates, write) = state["h"], inputs
        past = self.normed("gates_norm", self.recur("gates_kernel", h, 2))
        reset, keep = jnp.split(nn.sigmoid(gates + past), 2, axis=-1)
        past = self.normed("write_norm", self.recur("write_kernel", h, 1))
        h = keep * h + (1 - keep) * jnp.tanh(write + reset * past)
        return {"h": h}, h


@bounded
class GRU(CellMixer):
    """Carries an output along the tokens, which gates keep or replace.

        r, u = sigmoid(LN(W x[t] + b) + LN(U h[t-1]))
        g    = tanh(LN(W_g x[t] + b_g) + r LN(U_g h[t-1]))
        h[t] = u h[t-1] + (1 - u) g,   y[t] = W_o h[t]

    The first norms take statistics over both gates together. Recurrent kernels start
    orthogonal, gate by gate. The output is float32, products `dtype`. Tokens follow one
    another, so the time of a step grows with the length on any hardware.

    Reference: Ba, Kiros & Hinton, 2016, https://arxiv.org/abs/1607.06450, supplement,
    by the authors' code, where u keeps instead of replacing.

    Attributes:
      (those of `CellMixer`)
    """

    cell: ClassVar = GRUCell
    kept: ClassVar = ("h",)

    def cell_inputs(
        self, prefix: str, x: jax.Array, hidden: int
    ) -> tuple[jax.Array, jax.Array]:
        """The parts of the gates and of what is written that no past enters."""
        return (
            self.cell_input(f"{prefix}_gates", x, 2 * hidden),
            self.cell_input(f"{prefix}_write", x, hidden),
        )


build = GRU
