"""The second phase on a TPU: the addition and the merge in one kernel each way."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from reslab.ops import tiles
from reslab.ops.token_kernel import TokenKernel


def kernels(
    width: int, epsilon: float, dtype: Any, interpret: Any = False
) -> tuple[TokenKernel, TokenKernel]:
    """The kernel of the forward pass, and that whose gradient is the backward pass."""

    def again(kept, parameters):
        total, reading, logsumexp = kept
        (query,) = parameters
        mean = jnp.sum(total * total, axis=-1, keepdims=True) * (1.0 / width)
        product = jnp.sum(total * query, axis=-1, keepdims=True)
        own = product * jax.lax.rsqrt(mean + epsilon) - logsumexp
        # The sigmoid, written so that its gradient has a rule in the kernel.
        weight = 0.5 * jnp.tanh(0.5 * own) + 0.5
        return total, reading + weight * (total - reading)

    def forward(given, parameters):
        value, update, reading, logsumexp = given
        total = (value + update).astype(dtype).astype(jnp.float32)
        return again((total, reading, logsumexp), parameters)

    return (
        TokenKernel("block_merge", forward, interpret=interpret),
        TokenKernel("block_merge", again, temporaries=4, interpret=interpret),
    )


def obstacle(value: jax.Array) -> str | None:
    """Says what the kernel cannot do about these arguments, or None."""
    if found := tiles.common_obstacle(value.dtype, value.shape[0]):
        return found
    width = value.shape[-1]
    if fits(width, value.dtype):
        return None
    most = tiles.padded(width)
    while not fits(most, value.dtype):
        most -= tiles.LANES
    return f"width {width}, the widest is {most}"


def fits(width: int, dtype: Any) -> bool:
    """Returns whether a tile of both passes fits the chip."""
    forward, again = kernels(width, 0.0, dtype)
    array = jax.ShapeDtypeStruct((1, width), dtype)
    column = jax.ShapeDtypeStruct((1, 1), jnp.dtype(jnp.float32))
    query = (jax.ShapeDtypeStruct((1, width), jnp.dtype(jnp.float32)),)
    return bool(
        forward.forward_rows((*(array,) * 3, column), query, (array,) * 2)
        and again.backward_rows((array, array, column), query, (array,) * 2)
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def add_and_merge(
    value: jax.Array,
    update: jax.Array,
    reading: jax.Array,
    logsumexp: jax.Array,
    query: jax.Array,
    epsilon: float,
    interpret: Any = False,
) -> tuple[jax.Array, jax.Array]:
    """Runs the kernel on each device's own part of the batch; see `api.block_merge`."""
    return _forward(value, update, reading, logsumexp, query, epsilon, interpret)[0]


def _flat(array):
    return array.reshape(-1, array.shape[-1])


def _forward(value, update, reading, logsumexp, query, epsilon, interpret):
    kernel, _ = kernels(value.shape[-1], epsilon, value.dtype, interpret)

    def local(value, update, reading, logsumexp, query, *, axes):
        del axes
        given = [_flat(a) for a in (value, update, reading, logsumexp[..., None])]
        like = jax.ShapeDtypeStruct(given[0].shape, value.dtype)
        outputs = kernel.apply(tuple(given), (query.reshape(1, -1),), (like, like))
        return tuple(output.reshape(value.shape) for output in outputs)

    run = tiles.over_batch(local, (0, 0, 0, 0, None), (0, 0))
    outputs = tiles.differentiable_once(run, "block_merge")(
        value, update, reading, logsumexp, query
    )
    return outputs, (outputs[0], reading, logsumexp, query)


def _backward(epsilon, interpret, kept, cotangents):
    _, kernel = kernels(kept[0].shape[-1], epsilon, kept[0].dtype, interpret)

    def local(total, reading, logsumexp, query, *cotangents, axes):
        given = [_flat(a) for a in (total, reading, logsumexp[..., None])]
        (by_total, by_reading, by_log), (by_query,) = kernel.pull(
            tuple(given), (query.reshape(1, -1),), tuple(_flat(c) for c in cotangents)
        )
        return (
            by_total.reshape(total.shape),
            by_reading.reshape(reading.shape),
            by_log.reshape(logsumexp.shape),
            tiles.summed(by_query.reshape(-1), axes),
        )

    run = tiles.over_batch(local, (0, 0, 0, None, 0, 0), (0, 0, 0, -1))
    by_total, *others = tiles.differentiable_once(run, "block_merge")(
        *kept, *cotangents
    )
    return by_total, by_total, *others


add_and_merge.defvjp(_forward, _backward)
