"""Attention in plain jnp over a mesh that divides the tokens of a row."""

from typing import Any

import jax
from jax.sharding import PartitionSpec

from reslab.core.types import BATCH_AXES, HEAD_AXES, SEQUENCE_AXIS
from reslab.ops.attention.reference import reference_attention
from reslab.ops.attention.splash import axes_of


def is_divided(
    query: jax.Array, key: jax.Array, query_offset: int | jax.Array, hides_keys: bool
) -> bool:
    """Returns whether the mesh in context divides these tokens.

    A cache, or a row that the devices do not share evenly, is left to the compiler.
    """
    (batch, length, heads, _), (_, key_length, kv_heads, _) = query.shape, key.shape
    (_, rows), (_, parts), (_, columns) = map(
        axes_of, (BATCH_AXES, (SEQUENCE_AXIS,), HEAD_AXES)
    )
    is_whole = isinstance(query_offset, int) and not query_offset and not hides_keys
    sizes = ((batch, rows), (length, parts), (heads, columns), (kv_heads, columns))
    is_even = not any(size % count for size, count in sizes)
    return parts > 1 and is_whole and length == key_length and is_even


def divided_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    segments: jax.Array | None,
    **options: Any,
) -> jax.Array:
    """Each device attends from its own queries to all keys; see `api.attention`.

    Keys and values are gathered, their gradients scattered. A device keeps scores
    (batch, heads, length / parts, length).
    """
    (batch, _), (heads, _) = axes_of(BATCH_AXES), axes_of(HEAD_AXES)
    queries = PartitionSpec(batch, SEQUENCE_AXIS, heads)
    keys = PartitionSpec(batch, None, heads)

    def local(query, key, value, segments, key_segments):
        offset = jax.lax.axis_index(SEQUENCE_AXIS) * query.shape[1]
        return reference_attention(
            query,
            key,
            value,
            offset,
            segments=segments,
            key_segments=key_segments,
            **options,
        )

    run = jax.shard_map(
        local,
        in_specs=(
            *(queries, keys, keys),
            *(PartitionSpec(batch, SEQUENCE_AXIS), PartitionSpec(batch)),
        ),
        out_specs=queries,
    )
    return run(query, key, value, segments, segments)
