"""Methods for (I + A)^-1 of strictly lower matrices A (..., n, n), in plain jnp.

Each takes A, with zeros on and above its diagonal, and `product(left, right)`, which
multiplies matrices. Sums of A's powers end, but the powers may be far larger than
the inverse: up to 1e15 for n = 64 where keys are alike.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from reslab.core.varying import varying_like

Product = Callable[[jax.Array, jax.Array], jax.Array]
# Rows of a block that is inverted before blocks are joined in pairs.
LEAF = 16


def forward_substitution(matrices: jax.Array, product: Product) -> jax.Array:
    """Row after row: X[i] = I[i] - A[i] X."""

    def solve(row, inverse):
        # Later rows are multiplied by zeros.
        one = jax.lax.dynamic_slice_in_dim(matrices, row, 1, axis=-2)
        before = jax.lax.dynamic_slice_in_dim(inverse, row, 1, axis=-2)
        found = before - product(one, inverse)
        return jax.lax.dynamic_update_slice_in_dim(inverse, found, row, axis=-2)

    start = varying_like(_identity(matrices), matrices)
    return jax.lax.fori_loop(1, matrices.shape[-1], solve, start)


def block(matrices: jax.Array, product: Product) -> jax.Array:
    """Forward substitution in blocks of 16, which are joined in pairs."""
    return _joined(matrices, forward_substitution, product)


def recursive(matrices: jax.Array, product: Product) -> jax.Array:
    """A sum of powers in blocks of 16, which are joined in pairs."""
    return _joined(matrices, neumann, product)


def neumann(matrices: jax.Array, product: Product) -> jax.Array:
    """The sum of all powers of -A, by doubling; they vanish from the n-th on."""
    inverse, power, reached = _identity(matrices) - matrices, matrices, 2
    while reached < matrices.shape[-1]:
        power = product(power, power)
        inverse = inverse + product(inverse, power)
        reached *= 2
    return inverse


def newton_schulz(
    matrices: jax.Array, product: Product, iterations: int = 0
) -> jax.Array:
    """Iterates X <- X (2 I - (I + A) X) from I / (2 n); errors correct themselves.

    Args:
      matrices: A.
      product: Multiplies matrices.
      iterations: Their number; 0 is 4 log2(n), at least 12.
    """
    size = matrices.shape[-1]
    count = iterations or max(12, math.ceil(4 * math.log2(size)))
    identity = _identity(matrices)
    unit = identity + matrices

    def step(_, inverse):
        return product(inverse, 2 * identity - product(unit, inverse))

    start = varying_like(identity / (2 * size), matrices)
    return jax.lax.fori_loop(0, count, step, start)


def _identity(matrices: jax.Array) -> jax.Array:
    # Leading axes are not merged: they may be sharded.
    row, column = (
        jax.lax.broadcasted_iota(jnp.int32, matrices.shape, matrices.ndim - axis)
        for axis in (2, 1)
    )
    return (row == column).astype(matrices.dtype)


def _joined(
    matrices: jax.Array,
    invert: Callable[[jax.Array, Product], jax.Array],
    product: Product,
) -> jax.Array:
    """Inverts blocks along the diagonal, and joins their inverses in pairs.

    [[A, 0], [C, D]]^-1 = [[A^-1, 0], [-D^-1 C A^-1, D^-1]]
    """
    size = matrices.shape[-1]
    width = min(LEAF, 2 ** math.ceil(math.log2(size)))
    # A power of two of blocks; what is added inverts to an identity.
    whole = width * 2 ** math.ceil(math.log2(-(-size // width)))
    padding = [(0, 0)] * (matrices.ndim - 2) + [(0, whole - size)] * 2
    matrices = jnp.pad(matrices, padding) if whole > size else matrices

    def cut(width, down, step):
        """Blocks that are `down` blocks below the diagonal, every `step`-th of them."""
        starts = range(0, whole - down * width, step * width)
        blocks = [
            matrices[..., n + down * width :, n:][..., :width, :width] for n in starts
        ]
        return jnp.stack(blocks, axis=-3)

    inverse = invert(cut(width, 0, 1), product)
    while width < whole:
        first, second = inverse[..., ::2, :, :], inverse[..., 1::2, :, :]
        between = -product(second, product(cut(width, 1, 2), first))
        above = jnp.concatenate([first, jnp.zeros_like(first)], axis=-1)
        below = jnp.concatenate([between, second], axis=-1)
        inverse = jnp.concatenate([above, below], axis=-2)
        width *= 2
    return inverse[..., 0, :size, :size]
