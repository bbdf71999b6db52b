"""NOBLE: a dense projection with a nonlinear low-rank branch (2026)."""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.bounds import Count, NonNegative, bounded
from reslab.core.parameters import parameter
from reslab.core.precision import statistics_dtype
from reslab.nn.linears.dense import Dense


@bounded
class NOBLE(Dense):
    """Adds to a product what two layers of cosines make of a few features.

        y = x . kernel + cosnet(x . W_down + b_down) . W_up (+ bias)
        cosnet(z) = cos(f_2 * (cos(f_1 * z + p_1) . M + b_M) + p_2)

    The branch has `rank` features, each with two frequencies f and phases p of its
    own; all cosines are bounded by 1, so is its share of the output at the start. The
    cosines are taken in float32, the products in `dtype`.

    Initial values are the author's: the kernel half as large as in a dense
    projection (`kernel_scale`), W_up normal with 0.01/sqrt(rank), M with
    0.5/sqrt(rank), b_M uniform within 1/sqrt(rank), f uniform in (0.8, 1.2), p normal
    with 0.1. The author also multiplies learning rates, which groups of parameters
    do here: `frequency$` by 2, `phase$` by 4, `middle/kernel$` by
    sqrt(min(inputs, outputs) / rank), `(?<!ffn)/up/kernel$` (not the kernel of the
    feed-forward layer of that name) by that to the power 0.8.

    Reference: 2026, https://arxiv.org/abs/2603.06492.

    Tested against arrays of the author's reference, whose forward pass was copied by
    reading, and against those of another's implementation, which has no biases in
    the branch.

    Attributes:
      rank: Number of features of the branch.
      kernel_scale: Factor on the initial standard deviation of the kernel.
      use_branch_bias: Whether the branch has b_down and b_M.
      (and those of `LinearModule`)

    Raises:
      ReslabError: If `rank` is below 1.
    """

    rank: Count = 32
    kernel_scale: NonNegative = 0.5
    use_branch_bias: bool = True

    def kernel_std(self, inputs: Sequence[int]) -> float:
        """Returns the standard deviation of a dense kernel, times `kernel_scale`."""
        return self.kernel_scale * super().kernel_std(inputs)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., inputs) to (..., features)."""
        y = self.multiply(x)
        axes = (*self.input_axes, None)
        z = self._product("down", x, self.rank, axes, use_bias=self.use_branch_bias)
        z = self._cosine("first", z)
        z = self._product(
            "middle", z, self.rank, (None, None), init_std=0.5 / math.sqrt(self.rank)
        )
        if self.use_branch_bias:
            z = z + self._row("middle_bias", _uniform_init(-1, 1, self.rank), z)
        z = self._cosine("second", z)
        axes = (None, *self.output_axes)
        std = 0.01 / math.sqrt(self.rank) * self.scale
        return self.add_bias(
            y + self._product("up", z, self.outputs, axes, init_std=std)
        )

    def _product(self, name, x, features, kernel_axes, **fields) -> jax.Array:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        return Dense(features, kernel_axes, name=name, **fields, **dtypes)(x)

    def _row(self, name, init, z) -> jax.Array:
        row = parameter(self, name, init, (self.rank,), (None,), self.param_dtype)
        return row.astype(z.dtype).reshape((1,) * (z.ndim - 1) + (-1,))

    def _cosine(self, name, z) -> jax.Array:
        wide = z.astype(statistics_dtype(z.dtype))
        frequency = self._row(f"{name}_frequency", _uniform_init(0.8, 1.2, 1), wide)
        phase = self._row(f"{name}_phase", nn.initializers.normal(0.1), wide)
        return jnp.cos(frequency * wide + phase).astype(z.dtype)


def _uniform_init(low, high, rank):
    def init(key, shape, dtype):
        return jax.random.uniform(key, shape, dtype, low, high) / math.sqrt(rank)

    return init


build = NOBLE
