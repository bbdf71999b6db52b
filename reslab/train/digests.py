"""Digests of a state's leaves, and descriptions to compare them by."""

import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from reslab.core.errors import ReslabError
from reslab.core.trees import named_leaves

Tree = Any


def digests(tree: Tree) -> dict[str, int]:
    """Digests every leaf; the same on any mesh, without gathering.

        digest = sum_i bits_i * (2 i + 1)  mod 2**32

    `bits_i` is element i (row-major) as an unsigned integer; 64-bit elements count
    as two of 32 bits, random keys as their key data. Unsigned addition wraps
    around, hence is associative: the order in which shards are summed does not
    matter. Odd weights make every single flipped bit visible.

    Args:
      tree: Pytree of JAX arrays.

    Returns:
      The digest by leaf name.

    Raises:
      ReslabError: If a leaf is not a JAX array.

    >>> digests({"w": jnp.arange(3, dtype=jnp.uint32)})
    {'w': 13}
    """
    return examine(tree)[0]


def examine(tree: Tree) -> tuple[dict[str, int], list[str]]:
    """Digests every leaf, and names those that hold infinities or NaN, in one pass."""
    leaves = named_leaves(tree)
    for name, leaf in leaves.items():
        if not isinstance(leaf, jax.Array):
            raise ReslabError(
                f"state leaf {name}", expected="a JAX array", got=type(leaf).__name__
            )
    is_sharded = any(len(leaf.devices()) > 1 for leaf in leaves.values())
    found, finite = jax.device_get(_examine_all(list(leaves.values()), is_sharded))
    wrong = [
        name for name, is_finite in zip(leaves, finite, strict=True) if not is_finite
    ]
    return dict(zip(leaves, map(int, found), strict=True)), wrong


@functools.partial(jax.jit, static_argnames="is_sharded")
def _examine_all(
    leaves: list[jax.Array], is_sharded: bool
) -> tuple[list[jax.Array], list[jax.Array]]:
    if is_sharded:
        return list(map(_digest, leaves)), [jnp.all(_is_finite(x)) for x in leaves]
    found = list(map(_digest_and_finiteness, leaves))
    return [digest for digest, _ in found], [is_finite for _, is_finite in found]


def _digest(leaf: jax.Array) -> jax.Array:
    return jnp.sum(_weighted_bits(leaf), dtype=jnp.uint32)


def _digest_and_finiteness(leaf: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Computes both in one reduction, in a tenth of the time on a CPU.

    Gathers the partial results of an array on several devices.
    """
    bits, is_finite = _weighted_bits(leaf), _is_finite(leaf)
    new_axes = range(is_finite.ndim, bits.ndim)
    is_finite = jnp.broadcast_to(jnp.expand_dims(is_finite, new_axes), bits.shape)
    return jax.lax.reduce(
        (bits, is_finite),
        (jnp.uint32(0), jnp.asarray(True)),
        lambda a, b: (a[0] + b[0], a[1] & b[1]),
        tuple(range(bits.ndim)),
    )


def _weighted_bits(leaf: jax.Array) -> jax.Array:
    bits = _as_uint32(leaf)
    # A flat index from one iota per axis: `reshape(-1)` would gather the shards.
    index = jnp.zeros((), jnp.uint32)
    for axis, size in enumerate(bits.shape):
        position = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        index = index * jnp.uint32(size % 2**32) + position
    return bits * (2 * index + 1)


def _is_finite(leaf: jax.Array) -> jax.Array:
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):  # Also handles random keys.
        return jnp.asarray(True)
    return jnp.isfinite(leaf)


def _as_uint32(leaf: jax.Array) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(leaf)
    if leaf.dtype == jnp.bool_:
        return leaf.astype(jnp.uint32)
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        leaf = jnp.stack([leaf.real, leaf.imag], axis=-1)
    # A 64-bit element becomes a new last axis of size two.
    word = {1: jnp.uint8, 2: jnp.uint16}.get(leaf.dtype.itemsize, jnp.uint32)
    return jax.lax.bitcast_convert_type(leaf, word).astype(jnp.uint32)


def seal(record: Mapping[str, Any]) -> str:
    """Digests a record, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def describe(tree: Tree, digest: Mapping[str, int] | None = None) -> dict[str, Any]:
    """The names, shapes and dtypes of a tree as JSON, with digests when given."""
    return {
        name: {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}
        | ({"digest": digest[name]} if digest else {})
        for name, leaf in named_leaves(tree).items()
    }


def differing(stored: Mapping[str, Any], target: Mapping[str, Any]) -> list[str]:
    """Says how two descriptions differ, parameters before the rest of the state."""
    found = []
    for name in sorted({*stored, *target}, key=lambda n: (n[:7] != "params/", n)):
        if name not in stored:
            found.append(f"{name} is missing in the checkpoint")
        elif name not in target:
            found.append(f"{name} is only in the checkpoint")
        else:
            for field in ("shape", "dtype"):
                old, new = stored[name][field], target[name][field]
                if old != new:
                    show = tuple if field == "shape" else str
                    found.append(
                        f"{name} has {field} {show(old)} in the checkpoint, "
                        f"{show(new)} in the config"
                    )
    return found
