"""Attention on a TPU: JAX's splash kernel, on one device or over a mesh."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from reslab.core.precision import scaled
from reslab.core.types import BATCH_AXES, HEAD_AXES, SEQUENCE_AXIS

LANES = 128


def obstacle(
    query: jax.Array,
    key: jax.Array,
    *,
    query_offset: int | jax.Array = 0,
) -> str | None:
    """Says what the kernel cannot do about these arguments, or None."""
    (batch, length, heads, _), (_, key_length, kv_heads, _) = query.shape, key.shape
    if not isinstance(query_offset, int) or query_offset or length != key_length:
        return "queries that continue a cache (a query offset, or more keys)"
    _, parts = axes_of((SEQUENCE_AXIS,))
    if length % (LANES * parts):
        among = f" on each of {parts} devices" if parts > 1 else ""
        return f"length {length}, which {LANES} does not divide{among}"
    if query.dtype not in (jnp.float32, jnp.bfloat16):
        return f"dtype {query.dtype}"
    _, batch_parts = axes_of(BATCH_AXES)
    _, head_parts = axes_of(HEAD_AXES)
    if batch % batch_parts:
        return f"batch {batch} over {batch_parts} devices"
    if heads % head_parts or kv_heads % head_parts:
        return f"heads {heads} and {kv_heads} over {head_parts} devices"
    return None


def splash(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    segments: jax.Array | None,
    is_causal: bool,
    window: int | None,
    softcap: float | None,
    scale: float,
    interpret: bool = False,
) -> jax.Array:
    """Computes attention block by block; see `api.attention`.

    The compiler cannot partition a kernel. Under a mesh, each device runs it
    on its own rows, heads and queries, to which all keys and values of the row come:
    with grouped heads they are small, and the mask spares what no query of a device
    may see.

    Args:
      query: Shape (batch, length, heads, head_dim).
      key: Shape (batch, length, kv_heads, head_dim).
      value: The same shape as `key`.
      segments: Document of each token (batch, length).
      is_causal: Whether later keys are hidden.
      window: Number of latest keys visible, the query's own included.
      softcap: Bound of the scores.
      scale: Factor on the scores, applied to the queries.
      interpret: Whether to emulate the kernel, to check it on any machine.

    Returns:
      Like `query`.
    """
    make_kernel = functools.partial(
        _kernel,
        query.shape[1],
        is_causal=is_causal,
        window=window,
        softcap=softcap,
        interpret=interpret,
    )
    batch_axes, _ = axes_of(BATCH_AXES)
    head_axes, head_parts = axes_of(HEAD_AXES)
    length_axes, length_parts = axes_of((SEQUENCE_AXIS,))
    arguments = scaled(query, scale), key, value, segments, segments
    if not (batch_axes or head_axes or length_axes):
        return _apply(make_kernel(query.shape[2], 1), *arguments)
    queries = PartitionSpec(batch_axes, length_axes or None, head_axes, None)
    keys = PartitionSpec(batch_axes, None, head_axes, None)
    rows, whole_rows = PartitionSpec(batch_axes, length_axes), PartitionSpec(batch_axes)
    kernel = make_kernel(query.shape[2] // head_parts, length_parts)
    # The kernel's mask data is divided like the queries.
    mask = PartitionSpec(None, SEQUENCE_AXIS if length_axes else None)
    sharding = NamedSharding(jax.sharding.get_abstract_mesh(), mask)
    run = jax.shard_map(
        _apply,
        in_specs=(
            kernel.manual_sharding_spec(sharding),
            *(queries, keys, keys, rows, whole_rows),
        ),
        out_specs=queries,
        # The kernel does not declare how its outputs vary over the mesh.
        check_vma=False,
    )
    return run(kernel, *arguments)


def axes_of(names: tuple[str, ...]) -> tuple[tuple[str, ...], int]:
    """The axes of that name in the mesh in context, and their devices."""
    sizes = jax.sharding.get_abstract_mesh().shape
    present = tuple(name for name in names if name in sizes)
    return present, math.prod(sizes[name] for name in present)


def _kernel(length, heads, parts, *, is_causal, window, softcap, interpret):
    """Builds the kernel of one device's heads, for queries in several parts."""
    # Imported here: it takes 0.15 s.
    from jax.experimental.pallas.ops.tpu import splash_attention

    shape = (length, length)
    if window is not None:
        sides = (window - 1, 0 if is_causal else None)
        mask = splash_attention.LocalMask(shape, sides, offset=0)
    elif is_causal:
        mask = splash_attention.CausalMask(shape)
    else:
        mask = splash_attention.FullMask(shape)
    # Large blocks keep the matrix unit busy; 512 fits the memory of every TPU.
    block = math.gcd(length // parts, 512)
    return splash_attention.make_splash_mha(
        splash_attention.MultiHeadMask([mask] * heads),
        block_sizes=splash_attention.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        attn_logits_soft_cap=softcap,
        head_shards=1,
        q_seq_shards=parts,
        interpret=interpret,
    )


def _apply(kernel, query, key, value, segments, key_segments):
    from jax.experimental.pallas.ops.tpu import splash_attention

    def one(query, key, value, segments, key_segments):
        if segments is not None:
            segments = splash_attention.SegmentIds(segments, key_segments)
        return kernel(query, key, value, segments)

    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    output: Any = jax.vmap(one)(query, key, value, segments, key_segments)
    return jnp.swapaxes(output, 1, 2)
