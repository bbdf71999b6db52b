"""Writing, mixing and reading streams in plain jnp: the definition."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from reslab.core.precision import statistics_dtype


def passed(
    streams: Sequence[jax.Array],
    output: jax.Array,
    weight: Callable[[int], jax.Array],
    rounded: Callable[[jax.Array], jax.Array],
    *,
    is_read: bool,
) -> tuple[jax.Array, ...]:
    """The new streams and, where they are read, the reading of them, in float32.

    Args:
      streams: The streams.
      output: What the sublayer returned.
      weight: Gives the weight of that number; see `api.stream_mix` for their order.
      rounded: Rounds to the dtype of the streams.
      is_read: Whether they are read, and have weights for that.
    """
    count, reading, new = len(streams), [], []
    for t in range(count):
        terms = [weight(t * count + s) * h for s, h in enumerate(streams)]
        terms.append(weight(count * count + t) * output)
        new.append(rounded(functools.reduce(jnp.add, terms)))
        if is_read:
            reading.append(weight(count * count + count + t) * new[-1])
    return (*new, functools.reduce(jnp.add, reading)) if is_read else tuple(new)


def reads(streams: Sequence[Any], weights: Any) -> bool:
    """Returns whether there are weights of a reading."""
    count = len(streams)
    return weights.shape[-1] > count * count + count


def reference_stream_mix(
    streams: Sequence[jax.Array], output: jax.Array, weights: jax.Array
) -> tuple[Any, ...]:
    """Computes with streams of any shape; see `api.stream_mix`."""
    dtype, wide = output.dtype, statistics_dtype(output.dtype)
    shape = (1,) * (output.ndim - weights.ndim) + weights.shape
    weights = weights.astype(wide).reshape(shape)

    def weight(index):
        return weights[..., index : index + 1]

    def rounded(x):
        return x.astype(dtype).astype(wide)

    widened = [h.astype(wide) for h in streams]
    is_read = reads(streams, weights)
    results = passed(widened, output.astype(wide), weight, rounded, is_read=is_read)
    return tuple(result.astype(dtype) for result in results)
