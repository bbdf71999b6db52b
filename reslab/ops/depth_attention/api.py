"""Attention along depth: reading a history by queries, or by weights."""

import jax
import jax.numpy as jnp

from reslab.core.errors import ReslabError
from reslab.core.precision import statistics_dtype
from reslab.ops import evidence, tiles
from reslab.ops.depth_attention import mix_tpu, pallas_tpu
from reslab.ops.depth_attention.reference import attend, weighted_sums


def depth_read(
    values: jax.Array,
    queries: jax.Array,
    *,
    limit: int | jax.Array | None = None,
    epsilon: float = 1e-6,
    implementation: str = "auto",
) -> tuple[jax.Array, jax.Array]:
    """Reads earlier sources by attention, for one reader or for all of a block.

        l_sn  = q_s . v_n / sqrt(mean(v_n**2) + epsilon)
        o_s   = sum_n softmax_n(l_s) v_n,    lse_s = log sum_n exp(l_sn),    n < limit

    token by token. The history may have room for more than is read: the kernel does
    not copy sources from `limit` on, so the traffic of all readings of a network is
    triangular. Softmax and sums are float32 (float64 for float64).

    With several readers it is the first phase of Block Attention Residuals, to whose
    readings `reference.merge` adds what the block has written so far.

    Reference: Kimi Team, 2026, https://arxiv.org/abs/2603.15031, Eq. 2-4 and the
    two-phase form. The reference is tested against the code of
    flash-attention-residuals (catswe), which has both forms; the kernel against the
    reference.

    Args:
      values: The sources (rows, batch, ..., embed).
      queries: The query of every reader, times the gain of its norm (readers, embed).
      limit: Number of sources that are read, at least 1; may be traced. All if None.
      epsilon: Added to mean squares before the root.
      implementation: "reference" is plain jnp, "pallas" the TPU kernel; "auto"
        chooses by what was compiled (`reslab.ops.evidence`).

    Returns:
      The readings (readers, batch, ..., embed), like the sources, and the logarithms
      (readers, batch, ...), at least float32.

    Raises:
      ReslabError: If shapes do not fit, or the kernel cannot do what is asked.

    >>> values = jnp.array([[[2.0, 0.0]], [[0.0, 4.0]]])[:, :, None]
    >>> reading, _ = depth_read(values, jnp.zeros((1, 2)))
    >>> reading[0, 0, 0].tolist()
    [1.0, 2.0]
    """
    _check_read(values, queries, limit)
    queries = queries.astype(statistics_dtype(values.dtype))
    if reads_by_kernel(values, queries.shape[0], implementation):
        return pallas_tpu.read(values, queries, _count(values, limit), epsilon)
    flat = values.reshape(*values.shape[:2], -1, values.shape[-1])
    reading, lse = attend(flat, queries, epsilon, limit)
    shape = (queries.shape[0], *values.shape[1:])
    return reading.astype(values.dtype).reshape(shape), lse.reshape(shape[:-1])


def depth_read_through(
    values: jax.Array,
    queries: jax.Array,
    *,
    limit: int | jax.Array | None = None,
    epsilon: float = 1e-6,
    implementation: str = "auto",
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`depth_read`, and the sources, for later readers.

    Where later readers are given these sources, the kernel's backward pass adds to
    the gradient that comes from them in place, for the sources that were read alone.

    Args:
      values: As in `depth_read`.
      queries: As in `depth_read`.
      limit: As in `depth_read`.
      epsilon: As in `depth_read`.
      implementation: As in `depth_read`.

    Returns:
      The readings, the logarithms, and the sources.
    """
    if not reads_by_kernel(values, queries.shape[0], implementation):
        keywords = {"limit": limit, "epsilon": epsilon}
        read = depth_read(values, queries, implementation="reference", **keywords)
        return *read, values
    _check_read(values, queries, limit)
    return pallas_tpu.read_through(values, queries, _count(values, limit), epsilon)


def reads_by_kernel(values: jax.Array, readers: int, implementation: str) -> bool:
    """Returns whether `depth_read` runs its kernel on these arguments.

    Raises:
      ReslabError: If the kernel is asked for and cannot do what is asked.
    """
    obstacle = pallas_tpu.obstacle(values, readers)
    operation = "depth_read" if readers == 1 else "block_read"
    preferred = evidence.preferred(operation)
    chosen = tiles.choose("depth_read", implementation, obstacle, preferred)
    return chosen == "pallas"


def depth_mix(
    values: jax.Array,
    weights: jax.Array,
    *,
    limit: int | jax.Array | None = None,
    implementation: str = "auto",
) -> jax.Array:
    """Adds up earlier sources by weights that are given, for one reader or several.

        o_s = sum_n w_sn v_n,    n < limit

    token by token, in float32 (float64 for float64): what dense connections read.
    The kernel does not copy sources from `limit` on.

    Args:
      values: The sources (rows, batch, ..., embed).
      weights: Of every reader (readers, rows, batch, ...); those from `limit` on are
        not used.
      limit: Number of sources that are read, at least 1; may be traced. All if None.
      implementation: As in `depth_read`.

    Returns:
      The sums (readers, batch, ..., embed), like the sources.

    Raises:
      ReslabError: If shapes do not fit, or the kernel cannot do what is asked.

    >>> values = jnp.array([[[2.0, 0.0]], [[0.0, 4.0]]])[:, :, None]
    >>> depth_mix(values, jnp.full((1, 2, 1, 1), 0.5))[0, 0, 0].tolist()
    [1.0, 2.0]
    """
    weights = _checked_weights(values, weights, limit)
    if mixes_by_kernel(values, weights.shape[0], implementation):
        return mix_tpu.mix(values, weights, _count(values, limit))
    return weighted_sums(values, weights, limit).astype(values.dtype)


def depth_mix_through(
    values: jax.Array,
    weights: jax.Array,
    *,
    limit: int | jax.Array | None = None,
    implementation: str = "auto",
) -> tuple[jax.Array, jax.Array]:
    """`depth_mix`, and the sources, for later readers; see `depth_read_through`.

    Args:
      values: As in `depth_mix`.
      weights: As in `depth_mix`.
      limit: As in `depth_mix`.
      implementation: As in `depth_mix`.

    Returns:
      The sums, and the sources.

    Raises:
      ReslabError: As `depth_mix`.
    """
    weights = _checked_weights(values, weights, limit)
    if not mixes_by_kernel(values, weights.shape[0], implementation):
        keywords = {"limit": limit, "implementation": "reference"}
        return depth_mix(values, weights, **keywords), values
    return mix_tpu.mix_through(values, weights, _count(values, limit))


def mixes_by_kernel(values: jax.Array, readers: int, implementation: str) -> bool:
    """Returns whether `depth_mix` runs its kernel on these arguments.

    Raises:
      ReslabError: If the kernel is asked for and cannot do what is asked.
    """
    obstacle = mix_tpu.obstacle(values, readers)
    preferred = evidence.preferred("depth_mix")
    chosen = tiles.choose("depth_mix", implementation, obstacle, preferred)
    return chosen == "pallas"


def _checked_weights(values, weights, limit):
    _check_sources("depth_mix", values, limit)
    if weights.ndim != values.ndim or weights.shape[1:] != values.shape[:-1]:
        raise ReslabError(
            "depth_mix: weights",
            expected=f"(readers, {', '.join(map(str, values.shape[:-1]))})",
            got=str(weights.shape),
        )
    return weights.astype(statistics_dtype(values.dtype))


def _count(values, limit):
    return jnp.asarray(values.shape[0] if limit is None else limit, jnp.int32)


def _check_sources(operation, values, limit):
    if values.ndim < 3:
        raise ReslabError(
            f"{operation}: values",
            expected="(rows, batch, ..., embed)",
            got=str(values.shape),
        )
    rows = values.shape[0]
    if isinstance(limit, int) and not 1 <= limit <= rows:
        raise ReslabError(
            f"{operation}: limit", expected=f"1 to {rows}", got=str(limit)
        )


def _check_read(values, queries, limit):
    _check_sources("depth_read", values, limit)
    if queries.ndim != 2 or queries.shape[1] != values.shape[-1]:
        raise ReslabError(
            "depth_read: queries",
            expected=f"(readers, {values.shape[-1]})",
            got=str(queries.shape),
        )
