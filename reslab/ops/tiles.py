"""TPU kernels over tokens: how many rows a block has, and over which devices.

The largest kernel that compiles is not the fastest: from some size on a block only
takes memory in the chip. So blocks are as small as the copies to and from memory
allow, and fit the smallest default of all generations.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from reslab.core.errors import ReslabError
from reslab.core.platform import platform
from reslab.core.types import BATCH_AXES, SEQUENCE_AXIS

LANES = 128
# Memory of the chip that a kernel may use by default: 16 MiB on v5e and v5p, 32 on v6e.
# The compiler uses some of it.
VMEM_BYTES = 15 * 2**20
LARGEST_BLOCK = 256
IMPLEMENTATIONS = ("auto", "reference", "pallas")


def sublanes(dtype: Any) -> int:
    """Rows of a tile of this dtype in the chip: 8 of float32, 16 of bfloat16."""
    return 8 * 4 // jnp.dtype(dtype).itemsize


def padded(width: int) -> int:
    """A width as it lies in the chip, a multiple of 128.

    >>> padded(100), padded(256)
    (128, 256)
    """
    return -(-width // LANES) * LANES


def block_rows(
    row_bytes: int, dtype: Any, tokens: int, *, fixed: int = 0, most: int = 0
) -> int:
    """Returns the rows of a block: the largest power of two that fits.

    Args:
      row_bytes: What one row takes in the chip, all arrays together, twice where one
        block is copied while another is computed on.
      dtype: Dtype of the narrowest array, whose tiles have the most rows.
      tokens: Rows there are.
      fixed: What the kernel takes whatever the rows.
      most: Upper limit; `LARGEST_BLOCK` if 0.

    Returns:
      The number; 0 where not even one tile fits.

    >>> block_rows(2048 * 64, jnp.bfloat16, 10_000)
    64
    >>> block_rows(2048 * 64, jnp.bfloat16, 20), block_rows(2**21, jnp.float32, 100)
    (32, 0)
    """
    least = sublanes(dtype)
    fitting = (VMEM_BYTES - fixed) // row_bytes
    if fitting < least:
        return 0
    rows = 1 << (min(fitting, most or LARGEST_BLOCK).bit_length() - 1)
    enough = 1 << (max(tokens, least) - 1).bit_length()
    return max(least, min(rows, enough))


def batch_axes() -> tuple[tuple[str, ...], int]:
    """The axes that spread a batch in the mesh in context, and their devices."""
    sizes = jax.sharding.get_abstract_mesh().shape
    present = tuple(name for name in BATCH_AXES if name in sizes)
    return present, math.prod(sizes[name] for name in present)


def over_batch(
    function: Callable[..., Any],
    inputs: Sequence[int | None],
    outputs: Any,
) -> Callable[..., Any]:
    """Runs a function of arrays on each device's own part of the tokens.

    The compiler cannot partition a kernel. The batch is spread, and the axis after it
    where the mesh has an axis `SEQUENCE_AXIS` that divides it: every kernel here is a
    function of one token. Devices that share neither repeat the same work.

    Args:
      function: Takes and returns arrays; it is given the axes as `axes=`, for sums
        over all devices.
      inputs: The batch axis of each argument; None for what all devices have. The
        first that has one ends in features.
      outputs: The same for its results, a tree of numbers; -1 stands for None.
    """
    axes, _ = batch_axes()
    parts = jax.sharding.get_abstract_mesh().shape.get(SEQUENCE_AXIS, 1)
    if not axes and parts == 1:
        return functools.partial(function, axes=())

    def run(*arrays):
        first, axis = next(
            (array, axis)
            for array, axis in zip(arrays, inputs, strict=True)
            if axis is not None
        )
        has_length = first.ndim > axis + 2 and first.shape[axis + 1] % parts == 0
        spread = (SEQUENCE_AXIS,) if parts > 1 and has_length else ()

        def spec(axis):
            if axis is None or axis < 0:
                return PartitionSpec()
            return PartitionSpec(*(None,) * axis, axes or None, *spread)

        return jax.shard_map(
            functools.partial(function, axes=(*axes, *spread)),
            in_specs=tuple(spec(axis) for axis in inputs),
            out_specs=jax.tree.map(spec, outputs),
            # A kernel does not declare how its outputs vary over the mesh.
            check_vma=False,
        )(*arrays)

    return run


def summed(x: jax.Array, axes: Sequence[str]) -> jax.Array:
    """The sum over all devices that share a batch."""
    return jax.lax.psum(x, tuple(axes)) if axes else x


def common_obstacle(dtype: Any, batch: int) -> str | None:
    """Names what no kernel takes: other platforms, dtypes, uneven batches."""
    if platform() != "tpu":
        return f"platform {platform()} (it is a TPU kernel)"
    if dtype not in (jnp.float32, jnp.bfloat16):
        return f"dtype {jnp.dtype(dtype).name}, only float32 and bfloat16"
    _, parts = batch_axes()
    if batch % parts:
        near = -(-batch // parts) * parts
        return f"batch {batch} over {parts} devices, the nearest is {near}"
    return None


def choose(
    operation: str, implementation: str, obstacle: str | None, preferred: str
) -> str:
    """The implementation to run: what was asked for, or what pays and can be done.

    Args:
      operation: Its name, for messages.
      implementation: "auto", "reference" or "pallas".
      obstacle: What the kernel cannot do about these arguments, or None.
      preferred: What "auto" takes where there is no obstacle.

    Raises:
      ReslabError: If the kernel is asked for and cannot, or if there is no such
        implementation.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ReslabError(
            f"{operation}: implementation",
            expected=", ".join(IMPLEMENTATIONS),
            got=repr(implementation),
        )
    if implementation == "auto":
        return "reference" if obstacle else preferred
    if implementation == "pallas" and obstacle:
        raise ReslabError(
            f"{operation}: the kernel does not support {obstacle}",
            hint="implementation='auto'",
        )
    return implementation


def differentiable_once(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Wraps a kernel pass so that differentiating it twice raises a clear error.

    Args:
      function: The forward or backward pass, of arrays.
      name: Name of the operation, for the error.
    """
    wrapped = jax.custom_jvp(function)

    @wrapped.defjvp
    def _(primals, tangents):
        raise ReslabError(
            f"{name}: the gradient of the kernel's gradient",
            expected="one gradient",
            hint="implementation='reference'",
        )

    return wrapped
