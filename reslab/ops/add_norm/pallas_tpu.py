"""A residual addition and a norm on a TPU: one kernel each way, whatever the norm."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from reslab.ops import tiles
from reslab.ops.add_norm.reference import normalized
from reslab.ops.token_kernel import Arrays, TokenKernel


def kernels(
    norm: str, epsilon: float, dtype: Any, interpret: Any = False
) -> tuple[TokenKernel, TokenKernel]:
    """The kernel of the forward pass, and that whose gradient is the backward pass."""

    def sum_and_norm(total, rows):
        return total, normalized(norm, total, rows, epsilon)

    def forward(given, rows):
        x, update = given
        # The norm reads what the next sublayer will: a sum that is rounded.
        return sum_and_norm((x + update).astype(dtype).astype(jnp.float32), rows)

    def again(kept, rows):
        return sum_and_norm(kept[0], rows)

    return (
        TokenKernel(f"add_{norm}", forward, interpret=interpret),
        TokenKernel(f"add_{norm}", again, temporaries=4, interpret=interpret),
    )


def obstacle(norm: str, x: jax.Array, rows: int) -> str | None:
    """Says what the kernel cannot do about these arguments, or None."""
    if found := tiles.common_obstacle(x.dtype, x.shape[0]):
        return found
    width = x.shape[-1]
    if not fits(norm, width, x.dtype, rows):
        most = width
        while not fits(norm, most, x.dtype, rows):
            most -= tiles.LANES
        return f"width {width}, the widest is {tiles.padded(most)}"
    return None


def fits(norm: str, width: int, dtype: Any, rows: int) -> bool:
    """Returns whether a tile of both passes fits the chip."""
    forward, again = kernels(norm, 0.0, dtype)
    array = jax.ShapeDtypeStruct((1, width), dtype)
    parameters = (jax.ShapeDtypeStruct((1, width), jnp.dtype(jnp.float32)),) * rows
    return bool(
        forward.forward_rows((array,) * 2, parameters, (array,) * 2)
        and again.backward_rows((array,), parameters, (array,) * 2)
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 4, 5))
def add_norm(
    norm: str,
    x: jax.Array,
    update: jax.Array,
    rows: Arrays,
    epsilon: float,
    interpret: Any = False,
) -> tuple[jax.Array, jax.Array]:
    """Runs the kernel on each device's own part of the batch; see `api.add_norm`."""
    return _forward(norm, x, update, rows, epsilon, interpret)[0]


def _forward(norm, x, update, rows, epsilon, interpret):
    kernel, _ = kernels(norm, epsilon, x.dtype, interpret)

    def local(x, update, *rows, axes):
        del axes
        flat = x.reshape(-1, x.shape[-1])
        like = jax.ShapeDtypeStruct(flat.shape, x.dtype)
        outputs = kernel.apply(
            (flat, update.reshape(flat.shape)),
            tuple(row.reshape(1, -1) for row in rows),
            (like, like),
        )
        return tuple(output.reshape(x.shape) for output in outputs)

    run = tiles.over_batch(local, (0, 0, *(None for _ in rows)), (0, 0))
    outputs = tiles.differentiable_once(run, f"add_norm({norm!r})")(x, update, *rows)
    return outputs, (outputs[0], rows)


def _backward(norm, epsilon, interpret, kept, cotangents):
    total, rows = kept
    _, kernel = kernels(norm, epsilon, total.dtype, interpret)

    def local(total, by_total, by_output, *rows, axes):
        flat = [a.reshape(-1, a.shape[-1]) for a in (total, by_total, by_output)]
        (by_sum,), by_rows = kernel.pull(
            (flat[0],), tuple(row.reshape(1, -1) for row in rows), tuple(flat[1:])
        )
        sums = (tiles.summed(by_row.reshape(-1), axes) for by_row in by_rows)
        return by_sum.reshape(total.shape), *sums

    run = tiles.over_batch(
        local, (0, 0, 0, *(None for _ in rows)), (0, *(-1 for _ in rows))
    )
    by_sum, *by_rows = tiles.differentiable_once(run, f"add_norm({norm!r})")(
        total, *cotangents, *rows
    )
    return by_sum, by_sum, tuple(by_rows)


add_norm.defvjp(_forward, _backward)
