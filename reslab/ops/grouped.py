"""Products of sorted rows with the matrix of their group."""

import functools
import importlib
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from reslab.core.varying import varying_like

# Sizes that the kernel's blocks are multiples of, and its largest blocks.
LANES = 128
ROWS, COLUMNS = 512, 1024
DTYPES = (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32))

# Rows sum to a matrix of each group: the row axis is contracted, group by group.
_OUTER = jax.lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((0,), (0,)), ((), ())),
    lhs_ragged_dimensions=[0],
    rhs_group_dimensions=[],
)


def grouped_product(
    x: jax.Array, kernels: jax.Array, sizes: jax.Array, *, is_tiled: bool = False
) -> jax.Array:
    """Multiplies each row by the matrix of its group.

        y[i] = x[i] . kernels[g(i)]

    with rows in order of their groups: `jax.lax.ragged_dot`, or JAX's Pallas kernel for
    TPUs, which passes over rows of no group. Compiled for a v5e, XLA's estimate of the
    first is 80 times what the matrix unit needs (49,152 rows, 8 matrices of 2048 x
    1408; jax 0.10.2, libtpu 0.0.52). Under `vmap` it is the first, with all arguments
    batched; forward-mode derivatives are not defined.

    Reference: Gale et al., 2022, https://arxiv.org/abs/2211.15841 (the kernel).

    Args:
      x: Rows (rows, in).
      kernels: Matrices (groups, in, out).
      sizes: Number of rows of each group (groups,), int32; rows behind them have no
        group, and no meaning in the result.
      is_tiled: Whether to use the kernel, where `fits` says so.

    Returns:
      Rows (rows, out).

    >>> x, kernels = jnp.ones((3, 2)), jnp.stack([jnp.eye(2), 2 * jnp.eye(2)])
    >>> grouped_product(x, kernels, jnp.array([1, 2])).tolist()
    [[1.0, 1.0], [2.0, 2.0], [2.0, 2.0]]
    """
    # The slope of matrices that all devices share is summed over them.
    x, kernels = varying_like((x, kernels), x, kernels, sizes)
    return _grouped(x, kernels, sizes, is_tiled)


def fits(x: jax.Array, kernels: jax.Array) -> bool:
    """Returns whether the kernel takes rows (..., rows, in) and matrices."""
    sizes = (x.shape[-2], *kernels.shape[1:])
    is_even = not any(size % LANES for size in sizes)
    return is_even and x.dtype == kernels.dtype and x.dtype in DTYPES


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _grouped(x: jax.Array, kernels: jax.Array, sizes: jax.Array, is_tiled: bool):
    return (_tiled if is_tiled else _product)(x, kernels, sizes)


def _forward(x: jax.Array, kernels: jax.Array, sizes: jax.Array, is_tiled: bool):
    return _grouped(x, kernels, sizes, is_tiled), (x, kernels, sizes)


def _backward(is_tiled: bool, kept, slope):
    x, kernels, sizes = kept
    if is_tiled:
        by_x = _tiled_turned(slope, kernels, sizes)
        return by_x, _tiled_sums(x, slope, sizes), None
    turned = jnp.swapaxes(kernels, 1, 2)
    return _product(slope, turned, sizes), _sums(x, slope, sizes), None


_grouped.defvjp(_forward, _backward)


@custom_vmap
def _product(x: jax.Array, kernels: jax.Array, sizes: jax.Array) -> jax.Array:
    return jax.lax.ragged_dot(x, kernels, sizes)


@custom_vmap
def _sums(x: jax.Array, slope: jax.Array, sizes: jax.Array) -> jax.Array:
    """Sums of the outer products of each group's rows (groups, in, out)."""
    return jax.lax.ragged_dot_general(x, slope, sizes, _OUTER)


@custom_vmap
def _tiled(x: jax.Array, kernels: jax.Array, sizes: jax.Array) -> jax.Array:
    tiling = _tiling(x.shape[0], *kernels.shape[1:])
    return _megablox("gmm", x, kernels, sizes, x.dtype, tiling)


@custom_vmap
def _tiled_turned(slope: jax.Array, kernels: jax.Array, sizes: jax.Array) -> jax.Array:
    """The product with transposed matrices, which the kernel turns as it reads them."""
    tiling = _tiling(slope.shape[0], kernels.shape[2], kernels.shape[1])
    dtype = slope.dtype
    return _megablox("gmm", slope, kernels, sizes, dtype, tiling, transpose_rhs=True)


@custom_vmap
def _tiled_sums(x: jax.Array, slope: jax.Array, sizes: jax.Array) -> jax.Array:
    tiling = _tiling(x.shape[0], x.shape[1], slope.shape[1])
    return _megablox("tgmm", x.swapaxes(0, 1), slope, sizes, x.dtype, tiling)


def _megablox(name: str, *arguments: Any, **options: Any) -> jax.Array:
    """Calls one of JAX's kernels."""
    # Imported here: it takes 0.3 s. A function hides the module of its name.
    kernels = importlib.import_module("jax.experimental.pallas.ops.tpu.megablox.gmm")
    # They leave types to be promoted.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return getattr(kernels, name)(*arguments, **options)


def _tiling(rows: int, inputs: int, outputs: int) -> tuple[int, int, int]:
    """Blocks of rows, which divide them, of inputs and of outputs."""
    return math.gcd(rows, ROWS), min(inputs, COLUMNS), min(outputs, COLUMNS)


def _all_batched(function):
    """Batches a function whose arguments must all be, or none."""

    def rule(size, is_batched, *arguments):
        whole = [
            one if batched else jnp.broadcast_to(one, (size, *one.shape))
            for one, batched in zip(arguments, is_batched, strict=True)
        ]
        return jax.vmap(function)(*whole), True

    return rule


_product.def_vmap(_all_batched(_product.fun))
_sums.def_vmap(_all_batched(_sums.fun))
# The kernel's grid is as long as one problem has tiles.
_tiled.def_vmap(_all_batched(_product.fun))
_tiled_sums.def_vmap(_all_batched(_sums.fun))
_tiled_turned.def_vmap(
    _all_batched(lambda x, kernels, sizes: _product(x, kernels.swapaxes(1, 2), sizes))
)
