"""Deep delta learning: every sublayer overwrites one direction (Zhang et al., 2026)."""

import functools
import math
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.bounds import Bounds, bounded
from reslab.core.parameters import parameter
from reslab.core.precision import statistics_dtype
from reslab.core.types import Branch
from reslab.nn.residuals._streams import MOST_STREAMS

# The columns of the state, (batch, length, embed) each.
Columns = tuple[jax.Array, ...]


class DeltaUpdate(nn.Module):
    """Erases what the state holds in one direction, and writes a value there.

        k  = direction / sqrt(|direction|**2 + 1e-10)
        X' = X + beta k (v - k^T X),    beta = 2 sigmoid(w . context + b)

    Float32; the state keeps its dtype.

    Attributes:
      form: Where the value v comes from; see `DeepDeltaLearning`.
      blend: Where the share of the delta rule starts; None is all, for good.
      param_dtype: Dtype in which parameters are stored.
    """

    form: str = "linear"
    blend: Annotated[float | None, Bounds(least=0, most=1)] = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        state: Columns,
        direction: jax.Array,
        context: jax.Array,
        reading: jax.Array,
    ) -> Columns:
        """Updates the state.

        Args:
          state: Its columns.
          direction: What the sublayer returned.
          context: The normalized reading.
          reading: What the sublayer read, before its norm.

        Returns:
          The new columns.
        """
        features, values = direction.shape[-1], len(state)
        dtype = statistics_dtype(direction.dtype)
        start = nn.initializers.normal(0.5 / math.sqrt(features))
        zeros = nn.initializers.zeros

        def project(name, x, size):
            shape, axes = (features, size), ("embed", None)
            kernel = parameter(
                self, f"{name}_projection", start, shape, axes, self.param_dtype
            )
            return jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=dtype)

        def bias(name, size):
            row = parameter(self, name, zeros, (size,), (None,), self.param_dtype)
            lead = (1,) * (direction.ndim - 1)
            return row.astype(dtype).reshape(*lead, size)

        beta = 2 * nn.sigmoid(project("gate", context, 1) + bias("gate_bias", 1))
        if self.form == "sigmoid":
            said = project("value", reading, values) + bias("value_bias", values)
            value = 4 * nn.sigmoid(said)
        else:
            value = project("value", context, values)

        output = direction.astype(dtype)
        square = jnp.sum(jnp.square(output), axis=-1, keepdims=True)
        k = output * jax.lax.rsqrt(square + 1e-10)
        share = 1.0
        if self.blend is not None:
            init = nn.initializers.constant(self.blend)
            share = parameter(self, "blend", init, (), (), self.param_dtype)
            share = share.astype(dtype)

        def updated(column, wanted):
            x = column.astype(dtype)
            held = jnp.sum(k * x, axis=-1, keepdims=True)
            change = beta * k * (wanted - held)
            if self.blend is not None:
                change = share * change + (1 - share) * output
            return (x + change).astype(column.dtype)

        wanted = jnp.split(value, values, axis=-1)
        return tuple(map(updated, state, wanted))


class Reading(nn.Module):
    """Reads one vector from the columns, each feature with weights of its own.

        x[d] = sum_j weights[j, d] X[d, j]

    The weights start at 1 / columns. Float32, in the state's dtype.
    """

    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, state: Columns) -> jax.Array:
        """Reads from the columns."""
        shape = (len(state), state[0].shape[-1])
        init, axes = nn.initializers.constant(1 / len(state)), ("streams", "embed")
        weights = parameter(self, "weights", init, shape, axes, self.param_dtype)
        dtype = statistics_dtype(state[0].dtype)
        lead = (1,) * (state[0].ndim - 1)
        terms = [
            row.astype(dtype).reshape(*lead, -1) * column.astype(dtype)
            for row, column in zip(weights, state, strict=True)
        ]
        return functools.reduce(jnp.add, terms).astype(state[0].dtype)


@bounded
class DeepDeltaLearning(nn.Module):
    """Replaces what the stream holds in the direction that a sublayer returns.

        x  = X, or X read by learned weights where it has several columns
        c  = x / sqrt(mean(x**2) + 1e-5)
        k  = f(x) / |f(x)|
        X' = X + beta k (v^T - k^T X),    beta = 2 sigmoid(w . c + b)

    The sublayer only points; how far the state goes there is the gate's to say:
    beta 0 keeps it, 1 makes k^T X' = v^T, 2 with v = 0 reflects it. `values` is the
    number of columns: 1 is the scalar form, whose stream is as wide as the
    embeddings; more are a state (features, values), of copies of the embedding at
    first, one read by every sublayer and one before the end. The value v is

        "linear":   W c, as in the paper
        "sigmoid":  4 sigmoid(W x + b), as in the authors' code

    Gates start at 1, projections normal with deviation 0.5/sqrt(features) as in that
    code. Such a network does not start as a pre-norm network, whatever the start.
    With `blend`, an extension for converting trained models, a share a, learned from
    where `blend` says, is the delta rule's and the rest plain:

        X' = X + a beta k (v^T - k^T X) + (1 - a) f(x)

    so `blend=0.0` starts as, or continues from, a plain residual.

    Reference: Zhang et al., 2026, https://arxiv.org/abs/2601.00417. The update, in
    both forms of v, and the reading are tested against the authors' code and a
    transcription of the paper. The code shares one reading between the sublayers of
    a layer and makes it of two factors, started with random signs; here each
    sublayer has its own. Its convolution along the sequence, which makes the first
    columns differ, is not here: of the two sizes for which the paper gives losses
    with and without it, one gains 0.003 and the other loses 0.001.

    Attributes:
      values: Number of columns of the state.
      form: Where the value comes from, "linear" or "sigmoid".
      blend: Where the share of the delta rule starts; None is all, for good.
      param_dtype: Dtype in which parameters are stored.

    Raises:
      ReslabError: If `values` is below 1 or there is no such form.
    """

    values: Annotated[int, Bounds(least=1, most=MOST_STREAMS)] = 1
    form: Literal["linear", "sigmoid"] = "linear"
    blend: Annotated[float | None, Bounds(least=0, most=1)] = None
    param_dtype: Any = jnp.float32

    @property
    def reduces_to_plain_at_init(self) -> bool:
        """Only where the delta rule has no share yet."""
        return self.blend == 0

    def setup(self):
        """Makes the parts; each has parameters where it is used."""
        self.update = DeltaUpdate(self.form, self.blend, self.param_dtype)
        self.reading = Reading(self.param_dtype)
        self.last_reading = Reading(self.param_dtype)

    def widen(self, x: jax.Array) -> Columns:
        """Copies the embeddings to every column."""
        return (x,) * self.values

    def __call__(
        self, stream: Columns, branch: Branch, *, site: int | jax.Array
    ) -> Columns:
        """Reads, lets `branch` point, and overwrites there, whatever the site."""
        del site
        x = stream[0] if self.values == 1 else self.reading(stream)
        wide = x.astype(statistics_dtype(x.dtype))
        mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        context = (wide * jax.lax.rsqrt(mean_square + 1e-5)).astype(x.dtype)
        return self.update(stream, branch(x), context, x)

    def narrow(self, stream: Columns) -> jax.Array:
        """Reads from the columns for the last time."""
        return stream[0] if self.values == 1 else self.last_reading(stream)


build = DeepDeltaLearning
