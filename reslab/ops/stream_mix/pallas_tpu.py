"""Writing, mixing and reading streams on a TPU: one kernel each way."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from reslab.ops import tiles
from reslab.ops.stream_mix.reference import passed, reads
from reslab.ops.token_kernel import Arrays, TokenKernel


def kernel(dtype: Any, is_static: bool, interpret: Any = False) -> TokenKernel:
    """The kernel; its backward pass keeps what it is given.

    Args:
      dtype: Dtype of the streams.
      is_static: Whether all tokens have the same weights.
      interpret: How to emulate it on another machine; False is not at all.
    """

    def function(given, parameters):
        *streams, output = given if is_static else given[:-1]
        weights = parameters[0] if is_static else given[-1]
        lane = jax.lax.broadcasted_iota(jnp.int32, (1, weights.shape[1]), 1)

        def weight(index):
            # A sum, whose gradient the compiler can derive.
            own = jnp.where(lane == index, weights, 0.0)
            return jnp.sum(own, axis=-1, keepdims=True)

        def rounded(x):
            return x.astype(dtype).astype(jnp.float32)

        is_read = reads(streams, weights)
        return passed(streams, output, weight, rounded, is_read=is_read)

    return TokenKernel("stream_mix", function, temporaries=6, interpret=interpret)


def obstacle(streams: Arrays, weights: jax.Array) -> str | None:
    """Says what the kernel cannot do about these arguments, or None."""
    first = streams[0]
    if found := tiles.common_obstacle(first.dtype, first.shape[0]):
        return found

    def fits(width, count):
        array = jax.ShapeDtypeStruct((1, width), first.dtype)
        row = jax.ShapeDtypeStruct((1, weights.shape[-1]), jnp.dtype(jnp.float32))
        is_static = weights.ndim == 1
        given = (array,) * (count + 1) + (() if is_static else (row,))
        parameters = (row,) if is_static else ()
        results = (array,) * (count + reads(streams, weights))
        one = kernel(first.dtype, is_static)
        return one.backward_rows(given, parameters, results)

    width, count = first.shape[-1], len(streams)
    if fits(width, count):
        return None
    most = tiles.padded(width)
    while most and not fits(most, count):
        most -= tiles.LANES
    if most:
        return f"{count} streams of width {width}, the widest is {most}"
    return f"{count} streams"


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def stream_mix(
    streams: Arrays, output: jax.Array, weights: jax.Array, interpret: Any = False
) -> Arrays:
    """Runs the kernel on each device's part of the batch; see `api.stream_mix`."""
    return _forward(streams, output, weights, interpret)[0]


def _flat(array):
    return array.reshape(-1, array.shape[-1])


def _inputs(arrays, weights):
    """The arrays of a kernel: by token, and the same for all."""
    given = tuple(_flat(a) for a in arrays)
    if weights.ndim == 1:
        return given, (weights.reshape(1, -1),)
    return (*given, _flat(weights)), ()


def _forward(streams, output, weights, interpret):
    one = kernel(output.dtype, weights.ndim == 1, interpret)

    def local(weights, *arrays, axes):
        del axes
        given, parameters = _inputs(arrays, weights)
        like = jax.ShapeDtypeStruct(given[0].shape, given[0].dtype)
        results = one.apply(given, parameters, (like,) * count)
        return tuple(result.reshape(arrays[0].shape) for result in results)

    arrays, count = (*streams, output), len(streams) + reads(streams, weights)
    axis = None if weights.ndim == 1 else 0
    run = tiles.over_batch(local, (axis, *(0 for _ in arrays)), (0,) * count)
    once = tiles.differentiable_once(run, "stream_mix")
    return once(weights, *arrays), (streams, output, weights)


def _backward(interpret, kept, cotangents):
    streams, output, weights = kept
    arrays, is_static = (*streams, output), weights.ndim == 1
    one, count = kernel(output.dtype, is_static, interpret), len(arrays)

    def local(weights, *arrays_and_cotangents, axes):
        given, parameters = _inputs(arrays_and_cotangents[:count], weights)
        by_given, by_parameters = one.pull(
            given, parameters, tuple(map(_flat, arrays_and_cotangents[count:]))
        )
        by_weights = (*by_parameters, *by_given[count:])[0].reshape(weights.shape)
        if is_static:
            by_weights = tiles.summed(by_weights, axes)
        shape = arrays_and_cotangents[0].shape
        return by_weights, *(by.reshape(shape) for by in by_given[:count])

    axis = None if is_static else 0
    run = tiles.over_batch(
        local,
        (axis, *(0 for _ in (*arrays, *cotangents))),
        (-1 if is_static else 0, *(0 for _ in arrays)),
    )
    once = tiles.differentiable_once(run, "stream_mix")
    by_weights, *by_streams, by_output = once(weights, *arrays, *cotangents)
    return tuple(by_streams), by_output, by_weights


stream_mix.defvjp(_forward, _backward)
