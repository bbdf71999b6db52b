"""Deep delta learning: every sublayer overwrites one direction (Zhang et al., 2026)."""

import functools
import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.bounds import Bounds, bounded
from reslab.core.errors import ReslabError
from reslab.core.parameters import parameter
from reslab.core.precision import statistics_dtype
from reslab.core.types import Branch
from reslab.nn.base.token_shifts import known_tokens
from reslab.nn.residuals._streams import MOST_STREAMS

# More taps than these would be a mixer.
MOST_TAPS = 64
_Taps = Annotated[int, Bounds(least=0, most=MOST_TAPS)]

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
        if self.form == "linear":
            value = project("value", context, values)
        else:
            value = project("value", reading, values) + bias("value_bias", values)
        if self.form == "sigmoid":
            value = 4 * nn.sigmoid(value)

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

    The weights start at 1 / columns. With taps there are weights for earlier tokens
    too, zero at first:

        x[t, d] = sum_i sum_j weights[i, j, d] X[t - i, d, j]

    Float32, in the state's dtype.

    Attributes:
      taps: Number of latest tokens read; 0 is the token alone.
      name_of_tail: Prefix of the names by which earlier tokens are kept.
      param_dtype: Dtype in which parameters are stored.
    """

    taps: int = 0
    name_of_tail: str = "reading"
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, state: Columns) -> jax.Array:
        """Reads from the columns."""
        shape = (len(state), state[0].shape[-1])

        def init(key, shape, dtype):
            del key
            start = jnp.full(shape, 1 / len(state), dtype)
            return start.at[1:].set(0) if self.taps else start

        axes = ("streams", "embed")
        if self.taps:
            shape, axes = (self.taps, *shape), (None, *axes)
        weights = parameter(self, "weights", init, shape, axes, self.param_dtype)
        if not self.taps:
            return _weighted(weights, state)
        tokens = known_tokens()
        shifts = [
            tokens.shifts(column, self.taps, f"{self.name_of_tail}_{index}")
            for index, column in enumerate(state)
        ]
        flat = weights.swapaxes(0, 1).reshape(-1, shape[-1])
        return _weighted(flat, [past for column in shifts for past in column])


class Expansion(nn.Module):
    """Makes the first columns by a causal convolution, feature by feature.

        X[t, d, j] = sum_i weights[i, j, d] x[t - i, d]

    Copies of the embedding at first: the weights of the token itself are one, all
    others zero. Float32, in the dtype of the embedding.

    Attributes:
      values: Number of columns.
      taps: Number of latest tokens.
      param_dtype: Dtype in which parameters are stored.
    """

    values: int
    taps: int = 4
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> Columns:
        """Returns the columns of (batch, length, embed)."""

        def init(key, shape, dtype):
            del key
            return jnp.zeros(shape, dtype).at[0].set(1)

        shape, axes = (self.taps, self.values, x.shape[-1]), (None, "streams", "embed")
        weights = parameter(self, "weights", init, shape, axes, self.param_dtype)
        shifts = known_tokens().shifts(x, self.taps, "embedding")
        return tuple(_weighted(weights[:, j], shifts) for j in range(self.values))


def _weighted(weights: jax.Array, arrays: Sequence[jax.Array]) -> jax.Array:
    """Sums arrays (..., embed), each feature times its weight (arrays, embed)."""
    dtype = statistics_dtype(arrays[0].dtype)
    lead = (1,) * (arrays[0].ndim - 1)
    terms = [
        row.astype(dtype).reshape(*lead, -1) * array.astype(dtype)
        for row, array in zip(weights, arrays, strict=True)
    ]
    return functools.reduce(jnp.add, terms).astype(arrays[0].dtype)


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
        "affine":   W x + b, that code without its sigmoid

    Of several columns, `expansion` makes the first ones by a causal convolution over
    the latest tokens (EC), copies at first, and `taps` reads earlier tokens' columns
    too (TC), with weights that are zero at first. Neither crosses documents.

    Gates start at 1, projections normal with deviation 0.5/sqrt(features) as in that
    code. Such a network does not start as a pre-norm network, whatever the start.
    With `blend`, an extension for converting trained models, a share a, learned from
    where `blend` says, is the delta rule's and the rest plain:

        X' = X + a beta k (v^T - k^T X) + (1 - a) f(x)

    so `blend=0.0` starts as, or continues from, a plain residual.

    Reference: Zhang et al., 2026, https://arxiv.org/abs/2601.00417. The update, in
    all forms of v, the reading and the expansion are tested against the authors' code
    and a transcription of the paper, taps against their equation. The code shares one
    reading between the sublayers of a layer and makes it of two factors, started with
    random signs; here each sublayer has its own, as one factor.

    Attributes:
      values: Number of columns of the state.
      form: Where the value comes from: "linear", "sigmoid" or "affine".
      expansion: Taps of the convolution that makes the first columns; the code has 4, 0
        copies the embedding.
      taps: Tokens that a reading sees, its own among them; the code has 4, 0 is its
        own alone.
      blend: Where the share of the delta rule starts; None is all, for good.
      param_dtype: Dtype in which parameters are stored.

    Raises:
      ReslabError: If `values` is below 1, there is no such form, or one column is to
        be expanded or read along the sequence.
    """

    values: Annotated[int, Bounds(least=1, most=MOST_STREAMS)] = 1
    form: Literal["linear", "sigmoid", "affine"] = "linear"
    expansion: _Taps = 0
    taps: _Taps = 0
    blend: Annotated[float | None, Bounds(least=0, most=1)] = None
    sublayer_index: int = 0
    param_dtype: Any = jnp.float32

    def __post_init__(self):
        super().__post_init__()
        for field in ("expansion", "taps"):
            if getattr(self, field) and self.values == 1:
                raise ReslabError(
                    f"residuals 'ddl': {field}",
                    expected="0 where the state has one column",
                    got=str(getattr(self, field)),
                    hint="values=4",
                )

    @property
    def follows_tokens(self) -> bool:
        """Returns whether it looks along the sequence."""
        return bool(self.expansion or self.taps)

    def empty_tails(
        self, batch: int, features: int, dtype: Any, *, is_end: bool
    ) -> dict[str, jax.Array]:
        """Nothing yet of the latest tokens, of a sublayer or of the stream's ends."""
        found = {}
        if self.taps:
            name = "last" if is_end else f"reading_{self.sublayer_index}"
            kept = jnp.zeros((batch, self.taps - 1, features), dtype)
            found = {f"{name}_{index}": kept for index in range(self.values)}
        if is_end and self.expansion:
            kept = jnp.zeros((batch, self.expansion - 1, features), dtype)
            found["embedding"] = kept
        return found

    @property
    def reduces_to_plain_at_init(self) -> bool:
        """Only where the delta rule has no share yet."""
        return self.blend == 0

    def setup(self):
        """Makes the parts; each has parameters where it is used."""
        self.update = DeltaUpdate(self.form, self.blend, self.param_dtype)
        name = f"reading_{self.sublayer_index}"
        self.reading = Reading(self.taps, name, self.param_dtype)
        self.last_reading = Reading(self.taps, "last", self.param_dtype)
        if self.expansion:
            columns = self.values, self.expansion, self.param_dtype
            self.expanded = Expansion(*columns)

    def widen(self, x: jax.Array) -> Columns:
        """Copies the embeddings to every column, or expands them."""
        if self.expansion:
            return self.expanded(x)
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
