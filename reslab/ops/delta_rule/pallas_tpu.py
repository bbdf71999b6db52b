"""The delta rule as TPU kernels: one pass over the tokens each way.

The memory of a head stays in the chip from chunk to chunk, and so does all that a chunk
makes on the way. A chunk is one function, and the backward kernel is its transposition:
it goes over chunks from the last one, and computes each again from the memory before.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

from reslab.core.types import BATCH_AXES, HEAD_AXES
from reslab.ops import tiles
from reslab.ops.attention.splash import axes_of
from reslab.ops.decays import running_sums
from reslab.ops.delta_rule.chunk_channels_tpu import chunk_of_channels
from reslab.ops.delta_rule.chunk_tpu import Precision, chunk_of_heads, chunks
from reslab.ops.divided import is_divided

# Tokens of a chunk: the width of the matrix unit.
CHUNK = 128


def _loaded(refs, head):
    """Arrays of one head: those that have a gradient, and the others."""
    # Neighbouring heads may share a query and a key.
    *tokens, scalars = (ref[0, min(head, ref.shape[1] - 1)] for ref in refs)
    query, key, value, *decays = (x.astype(jnp.float32) for x in tokens)
    beta, coarse, fine, begun = (scalars[0, n : n + 1] for n in range(4))
    if decays:
        return (query, key, value, beta, *decays), (begun,)
    return (query, key, value, beta, fine), (coarse, begun)


def _forward_body(run, *refs):
    *tokens, start, output, states, end, memory = refs

    @pl.when(pl.program_id(2) == 0)
    def _():
        memory[...] = start[0]

    heads = range(memory.shape[0])
    given = []
    for head in heads:
        own, others = _loaded(tokens, head)
        states[0, head, 0] = memory[head].astype(states.dtype)
        given.append((*own, memory[head], *others))
    for head, found in zip(heads, run(given), strict=True):
        read, memory[head] = found
        output[0, head] = read.astype(output.dtype)

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _():
        end[0] = memory[...]


def _backward_body(run, *refs):
    # Each array of tokens or decays has a gradient here.
    count = (len(refs) - 7) // 2
    *tokens, states, by_output, by_end = refs[: count + 4]
    *by_tokens, by_scalars, by_start, memory = refs[count + 4 :]
    is_narrow = states.dtype == jnp.bfloat16

    @pl.when(pl.program_id(2) == 0)
    def _():
        memory[...] = by_end[0]

    heads, given, constant = range(memory.shape[0]), [], []
    for head in heads:
        own, others = _loaded(tokens, head)
        given.append((*own, states[0, head, 0].astype(jnp.float32)))
        constant.append(others)

    def again(given):
        pairs = zip(given, constant, strict=True)
        return run([(*one, *rest) for one, rest in pairs], is_narrow)

    _, pull = jax.vjp(again, given)
    (found,) = pull(
        [(by_output[0, head].astype(jnp.float32), memory[head]) for head in heads]
    )
    shared: dict[int, jax.Array] = {}
    for head, gradients in zip(heads, found, strict=True):
        *own, by_beta, by_decay, memory[head] = gradients
        if count > 3:
            own.append(by_decay)
        else:
            by_scalars[0, head, 0, 1:2] = by_decay
        by_scalars[0, head, 0, 0:1] = by_beta
        for n, (ref, gradient) in enumerate(zip(by_tokens, own, strict=True)):
            if ref.shape[1] < len(heads):
                shared[n] = shared[n] + gradient if n in shared else gradient
            else:
                ref[0, head] = gradient.astype(ref.dtype)
    for n, gradient in shared.items():
        by_tokens[n][0, 0] = gradient

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _():
        by_start[0] = memory[...]


@dataclasses.dataclass(frozen=True)
class Kernel:
    """The kernels for arrays of some sizes.

    Attributes:
      operation: Its name.
      chunk: One chunk of one head; see `chunk_tpu.chunks`.
      heads: Heads that one step takes.
      precision: The way of products.
      interpret: How to emulate it on another machine; False is not at all.
    """

    operation: str
    chunk: Any
    heads: int
    precision: Precision
    interpret: Any = False

    def forward(self, tokens, scalars, start):
        """Output, memories before all chunks, and the last memory."""
        _, key, value, *_ = tokens
        (query, *_), (states, end) = tokens, self._memories(key, value, scalars)
        results = [("tokens", _like(value, query.dtype)), states, end]
        given = [("tokens", x) for x in tokens]
        given += [("chunk", scalars), ("memory", start)]
        return self._call("forward", given, results)

    def backward(self, tokens, scalars, states, by_output, by_end):
        """Gradients of tokens, of beta and fine sums, and of the first memory."""
        _, key, value, *_ = tokens
        _, end = self._memories(key, value, scalars)
        lines = (*scalars.shape[:3], 5 - len(tokens), CHUNK)
        results = [("tokens", self._sums_of_step(x, scalars)) for x in tokens]
        results += [("chunk", jax.ShapeDtypeStruct(lines, jnp.float32)), end]
        given = [("tokens", x) for x in tokens]
        given += [("chunk", scalars), ("chunk", states)]
        given += [("tokens", by_output), ("memory", by_end)]
        *by_tokens, by_lines, by_start = self._call("backward", given, results)
        pairs = zip(by_tokens, tokens, strict=True)
        return tuple(_summed(*pair) for pair in pairs), by_lines, by_start

    def _sums_of_step(self, array, scalars):
        """Gradients; of what heads share, the sum over the heads of each step."""
        batch, heads, *rest = array.shape
        if heads == scalars.shape[1]:
            return _like(array, array.dtype)
        shape = (batch, scalars.shape[1] // self.heads, *rest)
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    def _memories(self, key, value, scalars):
        """Memories before all chunks, and the last one."""
        memory = (key.shape[-1], value.shape[-1])
        # Rounded like the tokens: only the backward pass of their chunk reads them.
        states = jax.ShapeDtypeStruct((*scalars.shape[:3], *memory), key.dtype)
        end = jax.ShapeDtypeStruct((*scalars.shape[:2], *memory), jnp.float32)
        return ("chunk", states), ("memory", end)

    def _call(self, way, given, results):
        is_back = way == "backward"
        batch, heads, count = results[-2][1].shape[:3]

        def spec(kind, array):
            """Blocks of tokens, of something of each chunk, or of a memory."""
            together = heads // array.shape[1]
            width = max(self.heads // together, 1)
            shape = {
                "tokens": (1, width, CHUNK, array.shape[-1]),
                "chunk": (1, self.heads, 1, *array.shape[-2:]),
                "memory": (1, self.heads, *array.shape[-2:]),
            }[kind]

            def place(b, h, n):
                n = count - 1 - n if is_back else n
                if together * width != self.heads:
                    h = jax.lax.div(h * self.heads, np.int32(together * width))
                return (b, h, *({"memory": ()}.get(kind, (n,))), *[0] * rest)

            rest = len(shape) - (2 if kind == "memory" else 3)
            return pl.BlockSpec(shape, place)

        body = _backward_body if is_back else _forward_body
        run = functools.partial(chunks, self.chunk, self.precision)
        memory = results[-1][1].shape[2:]
        return pl.pallas_call(
            functools.partial(body, run),
            grid=(batch, heads // self.heads, count),
            in_specs=[spec(*pair) for pair in given],
            out_specs=[spec(*pair) for pair in results],
            out_shape=[shape for _, shape in results],
            scratch_shapes=[pltpu.VMEM((self.heads, *memory), jnp.float32)],
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "arbitrary")
            ),
            interpret=self.interpret,
            name=f"{self.operation}_{way}",
        )(*(array for _, array in given))


def _like(array, dtype):
    return jax.ShapeDtypeStruct(array.shape, dtype)


def _summed(gradient, array):
    """Adds what the heads that share an array found."""
    if gradient.shape == array.shape:
        return gradient.astype(array.dtype)
    batch, heads, *rest = array.shape
    gradient = gradient.reshape(batch, heads, -1, *rest)
    return jnp.sum(gradient, axis=2).astype(array.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def run_kernel(
    kernel: Kernel, tokens: tuple[jax.Array, ...], scalars: jax.Array, start: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Runs over all chunks, with a gradient.

    Args:
      kernel: The kernels.
      tokens: Queries, keys, values, decays of channels (batch, heads, length, size).
      scalars: Numbers of tokens, of `lines_of`.
      start: The first memory.
    """
    output, _, end = kernel.forward(tokens, scalars, start)
    return output, end


def _run_forward(kernel, tokens, scalars, start):
    output, states, end = kernel.forward(tokens, scalars, start)
    return (output, end), (tokens, scalars, states)


def _run_backward(kernel, kept, cotangents):
    backward = tiles.differentiable_once(kernel.backward, kernel.operation)
    tokens, lines, start = backward(*kept, *cotangents)
    none = jnp.zeros_like(lines[..., :1, :])
    beta, *fine = (lines[..., n : n + 1, :] for n in range(lines.shape[-2]))
    scalars = jnp.concatenate([beta, none, *(fine or [none]), none], axis=-2)
    return tokens, scalars, start


run_kernel.defvjp(_run_forward, _run_backward)


def heads_of_step(
    heads: int, key_dim: int, value_dim: int, dtype: Any, is_of_channels: bool = False
) -> int:
    """Returns the heads that one step takes: their products fill each other's waits.

    Args:
      heads: Heads of one device.
      key_dim: Size of a key.
      value_dim: Size of a value.
      dtype: Dtype of the tokens.
      is_of_channels: Whether decays are of channels.

    Returns:
      4, 2 or 1, a divisor of `heads`; 0 if not even one head fits the chip's memory.
    """
    key, value = tiles.padded(key_dim), tiles.padded(value_dim)
    size, memory = jnp.dtype(dtype).itemsize, 4 * key * value
    kept = size * key * value
    # Backward: tokens and their gradients, and three memories, twice each, for copies.
    each = 2 * (CHUNK * size * (4 * key + 3 * value) + 2 * memory + kept) + memory
    inside = 4 * CHUNK * (24 * CHUNK + 8 * (key + value)) + 4 * memory
    if is_of_channels:
        # Decays and their gradients; sums for all seven widths, and what they scale.
        each += 4 * CHUNK * key * (2 * 2 + 5 * 7)
    return next(
        (
            n
            for n in (4, 2, 1)
            if heads % n == 0 and n * each + inside <= tiles.VMEM_BYTES
        ),
        0,
    )


def obstacle(
    query: jax.Array, value: jax.Array, log_decay: jax.Array | None, chunk: int
) -> str | None:
    """Names what the kernel cannot do about these arguments; None if nothing.

    Args:
      query: Queries, as in `api.delta_rule`.
      value: Values.
      log_decay: Log decays.
      chunk: Tokens of a chunk that are asked for; 0 is any number.
    """
    common = tiles.common_obstacle(query.dtype, query.shape[0])
    if common:
        return common
    _, columns = axes_of(HEAD_AXES)
    heads, value_dim = value.shape[2:]
    if chunk not in (0, CHUNK):
        return f"chunks of {chunk} tokens, only of {CHUNK}"
    if is_divided(value.shape[1]):
        return "rows whose tokens several devices share"
    if heads % columns:
        return f"{heads} heads over {columns} devices"
    is_of_channels = log_decay is not None and log_decay.ndim > 3
    sizes = query.shape[3], value_dim, query.dtype, is_of_channels
    if not heads_of_step(heads // columns, *sizes):
        return (
            f"heads of {query.shape[3]} x {value_dim}: a chunk of {CHUNK} tokens does "
            f"not fit the {tiles.VMEM_BYTES >> 20} MiB of VMEM"
        )
    return None


def over_devices(run: Any, *arrays: Any) -> tuple[jax.Array, jax.Array]:
    """Runs a kernel on each device's own rows and heads.

    Args:
      run: The kernel.
      *arrays: Its arguments: five of tokens, the state, and resets.
    """
    (rows, _), (columns, _) = axes_of(BATCH_AXES), axes_of(HEAD_AXES)
    if not rows and not columns:
        return run(*arrays)
    tokens = PartitionSpec(rows or None, None, columns or None)
    state = PartitionSpec(rows or None, columns or None)
    resets = PartitionSpec(rows or None)
    return jax.shard_map(
        run,
        in_specs=(*[tokens] * 5, state, resets),
        out_specs=(tokens, state),
        # A kernel does not declare how its outputs vary over the mesh.
        check_vma=False,
    )(*arrays)


def by_head(x: jax.Array) -> jax.Array:
    """(batch, length, heads, ...) to (batch, heads, chunks * CHUNK, ...)."""
    x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % CHUNK), *[(0, 0)] * (x.ndim - 2)])
    return jnp.moveaxis(x, 2, 1)


def lines_of(
    beta: jax.Array, log_decay: jax.Array | None, resets: jax.Array | None
) -> jax.Array:
    """Numbers of tokens by head and chunk, each a row of a chunk.

    Args:
      beta: Strengths (batch, length, heads).
      log_decay: Log decays of heads, likewise.
      resets: Beginnings of documents (batch, length).

    Returns:
      (batch, heads, chunks, 4, CHUNK): strengths, coarse and fine sums of log decays,
      and documents begun in the chunk so far.
    """

    def cut(x):
        x = by_head(x.astype(jnp.float32))
        return x.reshape(*x.shape[:2], -1, CHUNK)

    beta = cut(beta)
    coarse = fine = begun = jnp.zeros_like(beta)
    if log_decay is not None:
        coarse, fine = running_sums(cut(log_decay))
    if resets is not None:
        begun = jnp.cumsum(cut(resets[..., None]), axis=-1)
        begun = jnp.broadcast_to(begun, beta.shape)
    return jnp.stack([beta, coarse, fine, begun], axis=3)


def delta_rule_kernel(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    beta: jax.Array,
    log_decay: jax.Array | None,
    state: jax.Array,
    resets: jax.Array | None,
    interpret: Any = False,
) -> tuple[jax.Array, jax.Array]:
    """Applies the rule; see `api.delta_rule`."""
    tokens = [by_head(x) for x in (query, key, value)]
    operation, chunk = "delta_rule", chunk_of_heads
    is_of_channels = log_decay is not None and log_decay.ndim > 3
    if is_of_channels:
        tokens.append(by_head(log_decay.astype(jnp.float32)))
        operation, chunk = "delta_rule_of_channels", chunk_of_channels
    lines = lines_of(beta, None if is_of_channels else log_decay, resets)
    precision = Precision(is_exact=query.dtype.itemsize >= 4)
    sizes = query.shape[3], value.shape[3], query.dtype, is_of_channels
    at_once = heads_of_step(value.shape[2], *sizes)
    kernel = Kernel(operation, chunk, at_once, precision, interpret)
    output, state = run_kernel(kernel, tuple(tokens), lines, state.astype(jnp.float32))
    return jnp.moveaxis(output, 1, 2)[:, : value.shape[1]], state
