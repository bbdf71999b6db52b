"""A long short-term memory with layer normalization inside."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from reslab.core.bounds import bounded
from reslab.nn.mixers._cells import Cell, CellMixer


class LSTMCell(Cell):
    """One step of the memory."""

    @nn.compact
    def __call__(self, state, inputs):
        """Steps from a cell and an output (batch, hidden)."""
        past = self.normed("hidden_norm", self.recur("kernel", state["h"], 4))
        take, forget, show, write = jnp.split(inputs + past, 4, axis=-1)
        cell = nn.sigmoid(forget) * state["cell"] + nn.sigmoid(take) * jnp.tanh(write)
        h = nn.sigmoid(show) * jnp.tanh(self.normed("cell_norm", cell))
        return {"cell": cell, "h": h}, h


@bounded
class LSTM(CellMixer):
    """Carries a cell along the tokens, which gates write to, clear and read.

        i, f, o, g = LN(W x[t] + b) + LN(U h[t-1]) + b
        c[t] = sigmoid(f) c[t-1] + sigmoid(i) tanh(g)
        h[t] = sigmoid(o) tanh(LN(c[t])),   y[t] = W_o h[t]

    Each norm takes statistics over all four gates together; the cell is kept as it is.
    Recurrent kernels start orthogonal, gate by gate. Cell and output are float32,
    products `dtype`. Tokens follow one another, so the time of a step grows with the
    length on any hardware.

    Reference: Ba, Kiros & Hinton, 2016, https://arxiv.org/abs/1607.06450, supplement;
    the bias enters twice, as in the authors' code.

    Attributes:
      (those of `CellMixer`)
    """

    cell: ClassVar = LSTMCell
    kept: ClassVar = ("cell", "h")

    def cell_inputs(self, prefix: str, x: jax.Array, hidden: int) -> jax.Array:
        """The part of the gates that no earlier token enters."""
        return self.cell_input(f"{prefix}_gates", x, 4 * hidden, is_twice=True)


build = LSTM
