"""Linear attention with a decay per head as TPU kernels: those of the delta rule."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from reslab.core.types import HEAD_AXES
from reslab.ops import tiles
from reslab.ops.attention.splash import axes_of
from reslab.ops.delta_rule.chunk_tpu import Precision, decays_of
from reslab.ops.delta_rule.pallas_tpu import (
    CHUNK,
    Kernel,
    by_head,
    heads_of_step,
    lines_of,
    run_kernel,
)
from reslab.ops.divided import is_divided


def chunk_of_sums(
    precision: Precision,
    is_narrow: bool,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    beta: jax.Array,
    fine: jax.Array,
    memory: jax.Array,
    coarse: jax.Array,
    begun: jax.Array,
) -> Iterator[Any]:
    """One head whose writes do not depend on its memory; see `chunk_of_heads`."""
    del beta  # Only the delta rule has strengths.
    product = precision.product
    decay, from_start, to_end, keep = decays_of(fine, coarse, begun)
    seen = decay * product("nt", query, key, "ab")
    read = product("nn", query, memory, "ab" if is_narrow else "a")
    yield
    output = from_start * read + product("nn", seen, value)
    yield
    return output, keep * memory + product("tn", key, to_end * value, "a")


def heads_at_once(
    heads: int, groups: int, key_dim: int, value_dim: int, value_dtype: Any
) -> int:
    """Returns the heads of one step, all of one group; 0 if none fits."""
    return heads_of_step(heads // groups, key_dim, value_dim, value_dtype)


def obstacle(query: jax.Array, value: jax.Array, chunk: int) -> str | None:
    """Names what the kernel cannot do about these arguments; None if nothing.

    Args:
      query: Queries, as in `api.ssd`.
      value: Values.
      chunk: Tokens of a chunk that are asked for; 0 is any number.
    """
    for dtype in (query.dtype, value.dtype):
        common = tiles.common_obstacle(dtype, query.shape[0])
        if common:
            return common
    _, columns = axes_of(HEAD_AXES)
    groups, key_dim = query.shape[2:]
    if chunk not in (0, CHUNK):
        return f"chunks of {chunk} tokens, only of {CHUNK}"
    if is_divided(value.shape[1]):
        return "rows whose tokens several devices share"
    if groups % columns:
        return f"{groups} groups over {columns} devices"
    if not heads_at_once(value.shape[2], groups, key_dim, value.shape[3], jnp.float32):
        return (
            f"heads of {key_dim} x {value.shape[3]}: a chunk of {CHUNK} tokens does "
            f"not fit the {tiles.VMEM_BYTES >> 20} MiB of VMEM"
        )
    return None


def ssd_kernel(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    beta: None,
    log_decay: jax.Array,
    state: jax.Array,
    resets: jax.Array | None,
    interpret: Any = False,
) -> tuple[jax.Array, jax.Array]:
    """Applies the recurrence; see `api.ssd`. There are no strengths `beta`."""
    tokens = by_head(query), by_head(key), by_head(value)
    lines = lines_of(jnp.ones_like(log_decay), log_decay, resets)
    precision = Precision(is_exact=query.dtype.itemsize >= 4)
    (groups, key_dim), (heads, size) = query.shape[2:], value.shape[2:]
    at_once = heads_at_once(heads, groups, key_dim, size, jnp.float32)
    kernel = Kernel("ssd", chunk_of_sums, at_once, precision, interpret)
    output, state = run_kernel(kernel, tokens, lines, state.astype(jnp.float32))
    return jnp.moveaxis(output, 1, 2)[:, : value.shape[1]], state
