"""MemoryFormer's projection: hash tables instead of a product (Ding et al., 2024)."""

import functools
import math
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from reslab.core.bounds import Bounds, bounded
from reslab.core.errors import ReslabError
from reslab.core.parameters import parameter
from reslab.core.precision import statistics_dtype
from reslab.core.varying import varying_like
from reslab.nn.linears._linear import LinearModule
from reslab.nn.linears.dense import Dense

_BITS = Bounds(least=1, most=16, words="between 1 and 16 (a table has 2^bits rows)")


@bounded
class MemoryLookup(LinearModule):
    """Looks rows up in tables, by the signs of the input, and adds them up.

        z        = x, cut into pieces z_1 .. z_m of `bits` features each
        code_k   = the signs of z_k as a binary number, the first the highest
        score_k  = sum |z_k| * product of sigmoid(2 |z_k|)
        y        = sum_k score_k * tables[k, code_k] (+ bias)

    No product with a kernel: for every token, m = inputs / bits rows are read out of
    m * 2^bits. Codes have no gradient; the input learns through the scores alone.
    Scores and the sum are taken in float32, rows in `dtype`. Tables are gone through
    one after the other, and read again in the backward pass: all rows at once would
    be m times the output.

    The rows start normal, as large as makes the output of a standard normal input as
    large as a dense projection's with the same `init_std` and `scale`. (The authors
    start them at 0.02, biases at 0.001, whatever the sizes.)

    Reference: Ding et al., 2024, https://arxiv.org/abs/2411.12992. Its equation
    weighs a row by the product alone; the factor sum |z_k| is from the authors'
    code. Tested against that code, forward and backward, with and without the
    projection.

    Attributes:
      bits: Features that make one code; a table has 2^bits rows.
      use_projection: Whether z is a dense projection of x instead of x itself, as
        wide, with a bias.
      (and those of `LinearModule`)

    Raises:
      ReslabError: If `bits` is not between 1 and 16, or does not divide the inputs.
    """

    bits: Annotated[int, _BITS] = 8
    use_projection: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., inputs) to (..., features).

        Raises:
          ReslabError: If `bits` does not divide the inputs.
        """
        inputs = self.inputs_of(x)
        size = math.prod(inputs)
        if size % self.bits:
            raise ReslabError(
                "linears 'memory_lookup': bits",
                expected=f"a divisor of the {size} inputs",
                got=str(self.bits),
            )
        if self.use_projection:
            axes = (*self.input_axes, None)
            dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
            x = Dense(size, axes, use_bias=True, name="hash", **dtypes)(x)
            lead = x.shape[:-1]
        else:
            lead = x.shape[: x.ndim - len(inputs)]
        count = size // self.bits
        codes, scores = hash_codes(x.reshape(*lead, count, self.bits))
        # The standard deviation of a dense kernel's output for standard normal inputs.
        wanted = self.kernel_std(inputs) * math.sqrt(size)
        tables = parameter(
            self,
            "tables",
            nn.initializers.normal(wanted / math.sqrt(count * _mean_square(self.bits))),
            (count, 2**self.bits, *self.outputs),
            (None, self.input_axes[0], *self.output_axes),
            self.param_dtype,
        ).astype(self.dtype)

        @jax.checkpoint
        def add(total, scanned):
            table, code, score = scanned
            rows = jnp.take(table, code, axis=0, mode="clip").astype(total.dtype)
            return total + score.reshape(lead + wide) * rows, None

        wide = (1,) * len(self.outputs)
        start = jnp.zeros(lead + self.outputs, scores.dtype)
        start = varying_like(start, tables, scores)
        first = (jnp.moveaxis(codes, -1, 0), jnp.moveaxis(scores, -1, 0))
        total, _ = jax.lax.scan(add, start, (tables, *first))
        return self.add_bias(total.astype(self.dtype))


def hash_codes(z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Code and score of every piece of `bits` features.

    Args:
      z: (..., pieces, bits).

    Returns:
      Codes (..., pieces), int32, and scores (..., pieces), at least float32.
    """
    wide = z.astype(statistics_dtype(z.dtype))
    size = jnp.abs(wide)
    places = 2 ** jnp.arange(z.shape[-1] - 1, -1, -1, dtype=jnp.int32)
    is_set = (wide >= 0).astype(jnp.int32)
    codes = jnp.sum(is_set * places.reshape((1,) * (z.ndim - 1) + (-1,)), axis=-1)
    scores = jnp.sum(size, axis=-1) * jnp.prod(nn.sigmoid(2 * size), axis=-1)
    return codes, scores


@functools.cache
def _mean_square(bits: int) -> float:
    """The mean square of a score of standard normal features."""
    z = np.linspace(0, 12, 4001)
    density = np.exp(-np.square(z) / 2)
    density /= density.sum()
    sigmoid = 1 / (1 + np.exp(-2 * z))
    none, one, two = (np.sum(density * z**k * sigmoid**2) for k in range(3))
    pairs = bits * (bits - 1) * one**2 * none ** (bits - 2) if bits > 1 else 0.0
    return float(bits * two * none ** (bits - 1) + pairs)


build = MemoryLookup
