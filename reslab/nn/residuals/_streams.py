"""Base of residuals of several streams: their ends and their mixing."""

import functools
from collections.abc import Sequence
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.bounds import Bounds, bounded
from reslab.core.parameters import parameter
from reslab.core.platform import computed_once
from reslab.core.precision import statistics_dtype
from reslab.core.types import Branch
from reslab.ops.stream_mix.api import mixes_by_kernel, stream_mix

# Separate arrays, not one: a stacked axis would be copied at every mixing.
Streams = tuple[jax.Array, ...]

# Mixing is traced pair by pair, so tracing time grows with the square.
MOST_STREAMS = 256


@bounded
class SeveralStreams(nn.Module):
    """Base of residuals with n streams: copies of the embedding, summed at the end.

    Attributes:
      streams: Number of streams n.
      param_dtype: Dtype in which parameters are stored.
      kernels: Implementation of what has a kernel: "auto", "reference" or "pallas".

    Raises:
      ReslabError: If `streams` is below 1 or above `MOST_STREAMS`.
    """

    streams: Annotated[int, Bounds(least=1, most=MOST_STREAMS)] = 4
    param_dtype: Any = jnp.float32
    kernels: str = "auto"

    def widen(self, x: jax.Array) -> Streams:
        """Copies the embeddings to every stream."""
        return (x,) * self.streams

    def narrow(self, stream: Streams) -> jax.Array:
        """Sums the streams."""
        dtype = statistics_dtype(stream[0].dtype)
        total = functools.reduce(jnp.add, [h.astype(dtype) for h in stream])
        return total.astype(stream[0].dtype)

    def wide(self, stream: Streams, name, init, shape, axes) -> jax.Array:
        """A parameter in the dtype in which streams are mixed."""
        value = parameter(self, name, init, shape, axes, self.param_dtype)
        return value.astype(statistics_dtype(stream[0].dtype))


def pass_through(
    stream: Streams,
    branch: Branch,
    *,
    read: jax.Array | Sequence[jax.Array],
    mix: jax.Array | Sequence[Sequence[jax.Array]],
    write: jax.Array | Sequence[jax.Array],
    kernels: str = "reference",
) -> Streams:
    """Reads a mixture of streams and mixes the branch's output into them.

        H'[t] = sum_s mix[t][s] * H[s] + write[t] * branch(sum_s read[s] * H[s])

    Weights are numbers, or one for each token (..., 1), in the dtype to mix in.
    The compiler already reads at the speed of memory; mixing and writing, with their
    gradient, are one operation that has a kernel (`stream_mix`).
    """
    dtype = read[0].dtype
    reading = computed_once(weighted_sum(read, stream).astype(stream[0].dtype))
    output = computed_once(branch(reading))
    rows = [*(one for row in mix for one in row), *write]
    lead = output.shape[:-1] if read[0].ndim else ()
    if mixes_by_kernel(
        stream, jax.ShapeDtypeStruct((*lead, len(rows)), dtype), kernels
    ):
        together = jnp.concatenate(rows, axis=-1) if lead else jnp.stack(rows)
        return stream_mix(stream, output, together, implementation="pallas")[0]
    output = output.astype(dtype)
    return tuple(
        (weighted_sum(row, stream) + one * output).astype(h.dtype)
        for row, one, h in zip(mix, write, stream, strict=True)
    )


def weighted_sum(
    weights: jax.Array | Sequence[jax.Array], stream: Streams
) -> jax.Array:
    """Sums scaled streams, in the dtype of the weights.

    It is no matrix product: there are far fewer streams than a matrix unit is wide,
    and these sums fuse into one pass over the streams.
    """
    pairs = zip(weights, stream, strict=True)
    return functools.reduce(jnp.add, [w * h.astype(w.dtype) for w, h in pairs])
