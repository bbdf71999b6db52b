"""Several residual streams, written, mixed and read: one function, two forms."""

from collections.abc import Sequence
from typing import Any

import jax

from reslab.core.errors import ReslabError
from reslab.core.precision import statistics_dtype
from reslab.ops import evidence, tiles
from reslab.ops.stream_mix import pallas_tpu
from reslab.ops.stream_mix.reference import reads, reference_stream_mix


def stream_mix(
    streams: Sequence[jax.Array],
    output: jax.Array,
    weights: jax.Array,
    *,
    implementation: str = "auto",
) -> tuple[tuple[jax.Array, ...], jax.Array | None]:
    """Writes what a sublayer returned, mixes the streams, and reads for the next.

        H'[t] = sum_s mix[t, s] H[s] + write[t] y,    h = sum_t read[t] H'[t]

    for n streams, as hyper-connections and their manifold-constrained form do between
    one sublayer and the next. Each stream is rounded to its dtype before it is read;
    other arrays are float32 (float64 for float64). The kernel reads n + 1 arrays and
    writes n + 1; backward it reads 2 n + 2 and writes n + 1. Without weights of a
    reading, nothing is read: where those depend on the new streams, they come later.

    Reference: Zhu et al., 2024, https://arxiv.org/abs/2409.19606, Eq. 1-5; Xie et al.,
    2025, https://arxiv.org/abs/2512.24880.

    Args:
      streams: The streams H, n arrays (batch, ..., embed).
      output: What the sublayer returned, y, like a stream.
      weights: mix row by row (n * n), then write (n), then the next reader's read
        (n), if any: one array for all tokens (n * n + 2 n,), or for each (batch, ...,
        same).
      implementation: "reference" is plain jnp, "pallas" the TPU kernel; "auto"
        chooses by what was compiled (`reslab.ops.evidence`).

    Returns:
      The new streams and what the next sublayer reads, or None.

    Raises:
      ReslabError: If shapes do not fit, or the kernel cannot do what is asked.

    >>> import jax.numpy as jnp
    >>> one = jnp.ones((1, 2))
    >>> weights = jnp.array([1.0, 0.0, 0.0, 1.0, 1.0, 2.0, 0.5, 0.5])
    >>> (first, second), reading = stream_mix((one, one), one, weights)
    >>> first[0, 0].item(), second[0, 0].item(), reading[0, 0].item()
    (2.0, 3.0, 2.5)
    """
    streams, count = tuple(streams), len(streams)
    alike = {(h.shape, h.dtype) for h in (*streams, output)}
    if not streams or len(alike) > 1 or output.ndim < 2:
        raise ReslabError(
            "stream_mix: streams and output",
            expected="arrays (batch, ..., embed) of one shape and dtype",
            got="; ".join(f"{h.dtype}{[*h.shape]}" for h in (*streams, output)),
        )
    sizes = count * count + 2 * count, count * count + count
    *lead, size = weights.shape
    if size not in sizes or tuple(lead) not in ((), output.shape[:-1]):
        raise ReslabError(
            f"stream_mix: weights of {count} streams",
            expected=f"({sizes[0]},), or {(*output.shape[:-1], sizes[0])}; "
            f"or {sizes[1]} of them, without a reading",
            got=str(weights.shape),
        )
    weights = weights.astype(statistics_dtype(output.dtype))
    run = reference_stream_mix
    if mixes_by_kernel(streams, weights, implementation):
        run = pallas_tpu.stream_mix
    results = tuple(run(streams, output, weights))
    return results[:count], results[count] if reads(streams, weights) else None


def mixes_by_kernel(
    streams: Sequence[jax.Array], weights: Any, implementation: str
) -> bool:
    """Returns whether `stream_mix` runs its kernel on these arguments.

    Args:
      streams: The streams.
      weights: The weights, or their shape and dtype.
      implementation: As in `stream_mix`.

    Raises:
      ReslabError: If the kernel is asked for and cannot do what is asked.
    """
    operation = "stream_mix" if reads(streams, weights) else "stream_write"
    operation += "" if weights.ndim == 1 else "_of_tokens"
    obstacle = pallas_tpu.obstacle(tuple(streams), weights)
    preferred = evidence.preferred(operation)
    return tiles.choose("stream_mix", implementation, obstacle, preferred) == "pallas"
