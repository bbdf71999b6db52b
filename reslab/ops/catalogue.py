"""The operations that have a kernel, on their real shapes: for tests and benchmarks."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from reslab.ops.delta_rule import pallas_tpu as delta_tpu
from reslab.ops.delta_rule import shapes as delta_shapes
from reslab.ops.delta_rule.chunked import chunked
from reslab.ops.depth_attention import mix_tpu
from reslab.ops.depth_attention import pallas_tpu as depth_tpu
from reslab.ops.depth_attention import shapes as depth_shapes
from reslab.ops.depth_attention.reference import attend, weighted_sums
from reslab.ops.ssd import pallas_tpu as ssd_tpu
from reslab.ops.ssd import shapes as ssd_shapes
from reslab.ops.ssd.chunked import chunked as ssd_chunked
from reslab.ops.stream_mix import pallas_tpu as stream_tpu
from reslab.ops.stream_mix import shapes as stream_shapes
from reslab.ops.stream_mix.reference import reference_stream_mix

Run = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Loop:
    """Trip counts of the loops of a kernel.

    Attributes:
      steps: Steps of the grid.
      parts: Parts of a block, the loop inside a step.
      chunks: Steps for the same tokens; some loops run in one of them alone.
    """

    steps: int
    parts: int
    chunks: int = 1


@dataclasses.dataclass(frozen=True)
class Case:
    """One operation on one shape.

    Attributes:
      operation: Its name.
      shape: Name of the shape.
      dtype: Of its arrays.
      reference: Plain jnp.
      kernel: The kernel, which also takes `interpret=`.
      arguments: Shapes and dtypes of the arguments.
      forward_bytes: The least that must be read and written.
      backward_bytes: The same for the gradient, with what the kernel keeps.
      loops: Loops of the forward and the backward kernel.
      unread_bytes: Of its arguments, what a pass of the kernel leaves in memory.
    """

    operation: str
    shape: str
    dtype: str
    reference: Run
    kernel: Run
    arguments: tuple[Any, ...]
    forward_bytes: int
    backward_bytes: int
    loops: tuple[Loop, ...]
    unread_bytes: int = 0

    def both_ways(self, run: Run) -> tuple[Run, tuple[Any, ...]]:
        """Results and gradients in one function, and its arguments."""
        results = jax.eval_shape(self.reference, *self.arguments)

        def both(arguments, cotangents):
            outputs, pull = jax.vjp(run, *arguments)
            # These depend on the results, so one pass cannot compute both.
            outputs, cotangents = jax.lax.optimization_barrier((outputs, cotangents))
            return outputs, list(pull(cotangents))

        return both, (self.arguments, results)


def _array(*shape: int, dtype: Any = jnp.float32) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))


def _size(*arrays: Any) -> int:
    return sum(math.prod(a.shape) * a.dtype.itemsize for a in arrays)


def _loops(block: Sequence[int], parts: Sequence[int], tokens: int) -> Any:
    return tuple(
        Loop(-(-tokens // size), count)
        for size, count in zip(block, parts, strict=True)
    )


def depth_read(name: str, shape: Mapping[str, int], dtype: str) -> Case:
    """Reading a history, for one reader or for several."""
    rows, readers = shape["rows"], shape["readers"]
    tokens, width = shape["batch"] * shape["length"], shape["features"]
    values = _array(rows, shape["batch"], shape["length"], width, dtype=dtype)
    queries = _array(readers, width)

    def reference(values, queries):
        reading, lse = attend(values, queries, 1e-6)
        return reading.astype(dtype), lse

    def kernel(values, queries, interpret=False):
        return depth_tpu.read(values, queries, jnp.int32(rows), 1e-6, interpret)

    one = depth_tpu.Reading(rows, readers, width, jnp.dtype(dtype))
    blocks = tuple(one.block(tokens, is_backward=is_back) for is_back in (False, True))
    parts = tuple(max(1, block // one.part) for block in blocks)
    loops = _loops(blocks, parts, tokens)
    source = tokens * width * jnp.dtype(dtype).itemsize
    return Case(
        "depth_read" if readers == 1 else "block_read",
        *(name, dtype, reference, kernel, (values, queries)),
        (rows + readers) * source,
        (2 * rows + readers) * source,
        tuple(Loop(loop.steps * one.chunks, loop.parts, one.chunks) for loop in loops),
    )


def depth_mix(name: str, shape: Mapping[str, int], dtype: str) -> Case:
    """Weighted sums of a history."""
    rows, readers = shape["rows"], shape["readers"]
    read = shape.get("read", rows)
    tokens, width = shape["batch"] * shape["length"], shape["features"]
    values = _array(rows, shape["batch"], shape["length"], width, dtype=dtype)
    weights = _array(readers, *values.shape[:-1])

    def reference(values, weights):
        return weighted_sums(values, weights, jnp.int32(read)).astype(dtype)

    def kernel(values, weights, interpret=False):
        return mix_tpu.mix(values, weights, jnp.int32(read), interpret)

    one = mix_tpu.Mixing(rows, readers, width, jnp.dtype(dtype))
    blocks = tuple(one.block(tokens, is_backward=is_back) for is_back in (False, True))
    parts = tuple(max(1, block // one.part) for block in blocks)
    loops = _loops(blocks, parts, tokens)
    chunks = -(-read // one.chunk)
    source = tokens * width * jnp.dtype(dtype).itemsize
    return Case(
        *("depth_mix", name, dtype, reference, kernel, (values, weights)),
        # The gradient is written for all sources, including zeros.
        (read + readers) * source + _size(weights),
        (read + rows + readers) * source + 2 * _size(weights),
        tuple(Loop(loop.steps * chunks, loop.parts, chunks) for loop in loops),
        unread_bytes=(rows - read) * source,
    )


def stream_mix(
    name: str,
    shape: Mapping[str, int],
    dtype: str,
    is_static: bool = True,
    is_read: bool = True,
) -> Case:
    """Mixed streams, that are also read or not."""
    tokens, width = shape["batch"] * shape["length"], shape["features"]
    count = shape["streams"]
    x = _array(shape["batch"], shape["length"], width, dtype=dtype)
    size = count * count + count + count * is_read
    weights = _array(size) if is_static else _array(*x.shape[:-1], size)

    def kernel(streams, output, weights, interpret=False):
        return stream_tpu.stream_mix(streams, output, weights, interpret)

    one = stream_tpu.kernel(dtype, is_static)
    flat, row = _array(tokens, width, dtype=dtype), _array(tokens, size)
    given = (flat,) * (count + 1) + (() if is_static else (row,))
    parameters = (_array(1, size),) if is_static else ()
    results = (flat,) * (count + is_read)
    blocks = (
        one.forward_rows(given, parameters, results),
        one.backward_rows(given, parameters, results),
    )
    parts = tuple(one.parts(block, width) for block in blocks)
    read, written = (count + 1) * _size(x), (count + is_read) * _size(x)
    operation = "stream_mix" if is_read else "stream_write"
    return Case(
        operation if is_static else f"{operation}_of_tokens",
        *(name, dtype, reference_stream_mix, kernel, ((x,) * count, x, weights)),
        *(read + written, 2 * read + written),
        _loops(blocks, parts, tokens),
    )


def delta_rule(
    name: str, shape: Mapping[str, int], dtype: str, *, is_of_channels: bool = False
) -> Case:
    """The delta rule with decays of heads, or of channels."""
    tokens = (shape["batch"], shape["length"], shape["heads"])
    key_dim, value_dim = shape["key_dim"], shape["value_dim"]
    key = _array(*tokens, key_dim, dtype=dtype)
    value = _array(*tokens, value_dim, dtype=dtype)
    line = _array(*tokens)
    decay = _array(*tokens, *([key_dim] if is_of_channels else []))

    def bounded(key, beta, log_decay):
        """Makes any numbers ones of a memory that stays finite."""
        size = jnp.sum(jnp.square(key.astype(jnp.float32)), axis=-1, keepdims=True)
        key = (key * jax.lax.rsqrt(size)).astype(dtype)
        return key, jax.nn.sigmoid(beta), -jax.nn.softplus(log_decay)

    def run(form, query, key, value, beta, log_decay, **options):
        key, beta, log_decay = bounded(key, beta, log_decay)
        state = (shape["batch"], shape["heads"], key_dim, value_dim)
        given = query, key, value, beta, log_decay, jnp.zeros(state)
        return form(*given, None, **options)[0].astype(dtype)

    arguments = (key, key, value, line, decay)
    chunks = -(-shape["length"] // delta_tpu.CHUNK)
    sizes = key_dim, value_dim, dtype, is_of_channels
    at_once = delta_tpu.heads_of_step(shape["heads"], *sizes)
    steps = shape["batch"] * shape["heads"] // at_once * chunks
    return Case(
        *("delta_rule_of_channels" if is_of_channels else "delta_rule", name, dtype),
        functools.partial(run, functools.partial(chunked, size=delta_tpu.CHUNK)),
        functools.partial(run, delta_tpu.delta_rule_kernel),
        arguments,
        _size(*arguments, value),
        2 * _size(*arguments) + _size(value),
        (Loop(steps, 1),) * 2,
    )


def ssd(name: str, shape: Mapping[str, int], dtype: str) -> Case:
    """Linear attention with a decay per head."""
    batch, length, heads, groups = (
        shape[key] for key in ("batch", "length", "heads", "groups")
    )
    key_dim, value_dim = shape["key_dim"], shape["value_dim"]
    key = _array(batch, length, groups, key_dim, dtype=dtype)
    value = _array(batch, length, heads, value_dim, dtype=dtype)
    decay = _array(batch, length, heads)

    def run(form, query, key, value, log_decay, **options):
        decays = -jax.nn.softplus(log_decay)
        state = jnp.zeros((batch, heads, key_dim, value_dim))
        return form(query, key, value, decays, state, None, **options)[0].astype(dtype)

    def kernel(query, key, value, *rest, **options):
        return ssd_tpu.ssd_kernel(query, key, value, None, *rest, **options)

    sizes = heads, groups, key_dim, value_dim, jnp.float32
    chunks = -(-length // delta_tpu.CHUNK)
    steps = batch * heads // ssd_tpu.heads_at_once(*sizes) * chunks
    arguments = (key, key, value, decay)
    return Case(
        *("ssd", name, dtype),
        functools.partial(run, functools.partial(ssd_chunked, size=delta_tpu.CHUNK)),
        functools.partial(run, kernel),
        arguments,
        _size(*arguments, value),
        2 * _size(*arguments) + _size(value),
        (Loop(steps, 1),) * 2,
    )


_MAKERS: Mapping[str, tuple[Run, Mapping[str, Any]]] = {
    "depth_read": (depth_read, depth_shapes.READS),
    "block_read": (depth_read, depth_shapes.BLOCKS),
    "depth_mix": (depth_mix, depth_shapes.MIXES),
    "delta_rule": (delta_rule, delta_shapes.SHAPES),
    "delta_rule_of_channels": (
        functools.partial(delta_rule, is_of_channels=True),
        delta_shapes.SHAPES,
    ),
    "ssd": (ssd, ssd_shapes.SHAPES),
    "stream_mix": (stream_mix, stream_shapes.SHAPES),
    "stream_mix_of_tokens": (
        functools.partial(stream_mix, is_static=False),
        stream_shapes.SHAPES,
    ),
    "stream_write": (
        functools.partial(stream_mix, is_read=False),
        stream_shapes.SHAPES,
    ),
    "stream_write_of_tokens": (
        functools.partial(stream_mix, is_static=False, is_read=False),
        stream_shapes.SHAPES,
    ),
}
OPERATIONS = tuple(_MAKERS)


def cases(operation: str, dtype: str = "bfloat16") -> Iterator[Case]:
    """Yields the cases of an operation of `OPERATIONS`, smallest shapes first."""
    make, shapes = _MAKERS[operation]
    for name, shape in shapes.items():
        yield make(name, shape, dtype)
