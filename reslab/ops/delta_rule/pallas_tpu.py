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
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

from reslab.core.types import BATCH_AXES, HEAD_AXES
from reslab.ops import tiles
from reslab.ops.attention.splash import axes_of
from reslab.ops.decays import running_sums
from reslab.ops.delta_rule.chunk_tpu import Precision, chunks
from reslab.ops.divided import is_divided

# Tokens of a chunk: the width of the matrix unit.
CHUNK = 128
# Rows of `scalars`, one number each for the tokens of a chunk.
_BETA, _COARSE, _FINE, _BEGUN = range(4)


def _loaded(refs, head):
    query, key, value, scalars = (ref[0, head] for ref in refs)
    lines = (scalars[0, n : n + 1] for n in (_BETA, _FINE, _COARSE, _BEGUN))
    query, key, value = (x.astype(jnp.float32) for x in (query, key, value))
    return query, key, value, *lines


def _forward_body(precision, *refs):
    *tokens, start, output, states, end, memory = refs

    @pl.when(pl.program_id(2) == 0)
    def _():
        memory[...] = start[0]

    heads = range(memory.shape[0])
    given = []
    for head in heads:
        query, key, value, beta, fine, *others = _loaded(tokens, head)
        states[0, head, 0] = memory[head].astype(states.dtype)
        given.append((query, key, value, beta, fine, memory[head], *others))
    for head, found in zip(heads, chunks(precision, given), strict=True):
        read, memory[head] = found
        output[0, head] = read.astype(output.dtype)

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _():
        end[0] = memory[...]


def _backward_body(precision, *refs):
    *tokens, states, by_output, by_end, by_query, by_key, by_value = refs[:10]
    by_scalars, by_start, memory = refs[10:]
    is_narrow = states.dtype == jnp.bfloat16

    @pl.when(pl.program_id(2) == 0)
    def _():
        memory[...] = by_end[0]

    heads, given, constant = range(memory.shape[0]), [], []
    for head in heads:
        query, key, value, beta, fine, *others = _loaded(tokens, head)
        before = states[0, head, 0].astype(jnp.float32)
        given.append((query, key, value, beta, fine, before))
        constant.append(others)

    def run(given):
        pairs = zip(given, constant, strict=True)
        return chunks(precision, [(*one, *rest) for one, rest in pairs], is_narrow)

    _, pull = jax.vjp(run, given)
    (found,) = pull(
        [(by_output[0, head].astype(jnp.float32), memory[head]) for head in heads]
    )
    for head, gradients in zip(heads, found, strict=True):
        *by_tokens, by_beta, by_fine, memory[head] = gradients
        for ref, gradient in zip((by_query, by_key, by_value), by_tokens, strict=True):
            ref[0, head] = gradient.astype(ref.dtype)
        by_scalars[0, head, 0, 0:1] = by_beta
        by_scalars[0, head, 0, 1:2] = by_fine

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _():
        by_start[0] = memory[...]


@dataclasses.dataclass(frozen=True)
class Kernel:
    """The kernels for arrays of some sizes.

    Attributes:
      heads: Heads that one step takes.
      precision: The way of products.
      interpret: How to emulate it on another machine; False is not at all.
    """

    heads: int
    precision: Precision
    interpret: Any = False

    def forward(self, query, key, value, scalars, start):
        """Output, memories before all chunks, and the last memory."""
        return self._call("forward", query, key, value, scalars, start)

    def backward(self, query, key, value, scalars, states, by_output, by_end):
        """Gradients of tokens, of beta and fine sums, and of the first memory."""
        given = query, key, value, scalars, states, by_output, by_end
        return self._call("backward", *given)

    def _call(self, way, *given):
        query, key, value, scalars = given[:4]
        batch, heads, chunks = scalars.shape[:3]
        is_back = way == "backward"

        def spec(kind, array):
            """Blocks of tokens, of something of each chunk, or of a memory."""
            shape = {
                "tokens": (1, self.heads, CHUNK, array.shape[-1]),
                "chunk": (1, self.heads, 1, *array.shape[-2:]),
                "memory": (1, self.heads, *array.shape[-2:]),
            }[kind]

            def place(b, h, n):
                n = chunks - 1 - n if is_back else n
                return (b, h, *({"memory": ()}.get(kind, (n,))), *[0] * rest)

            rest = len(shape) - (2 if kind == "memory" else 3)
            return pl.BlockSpec(shape, place)

        def like(shape, dtype):
            return jax.ShapeDtypeStruct(shape, dtype)

        memory = (*key.shape[-1:], *value.shape[-1:])
        # Rounded like the tokens: only the backward pass of their chunk reads them.
        states = like((batch, heads, chunks, *memory), key.dtype)
        end = like((batch, heads, *memory), jnp.float32)
        if is_back:
            out = [like(x.shape, x.dtype) for x in (query, key, value)]
            pairs = like((batch, heads, chunks, 2, CHUNK), jnp.float32)
            results = [*zip(["tokens"] * 3, out, strict=True), ("chunk", pairs)]
            results.append(("memory", end))
            kinds = [*["tokens"] * 3, "chunk", "chunk", "tokens", "memory"]
        else:
            results = [("tokens", like(value.shape, query.dtype))]
            results += [("chunk", states), ("memory", end)]
            kinds = [*["tokens"] * 3, "chunk", "memory"]
        body = _backward_body if is_back else _forward_body
        return pl.pallas_call(
            functools.partial(body, self.precision),
            grid=(batch, heads // self.heads, chunks),
            in_specs=[spec(k, x) for k, x in zip(kinds, given, strict=True)],
            out_specs=[spec(*result) for result in results],
            out_shape=[shape for _, shape in results],
            scratch_shapes=[pltpu.VMEM((self.heads, *memory), jnp.float32)],
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "arbitrary")
            ),
            interpret=self.interpret,
            name=f"delta_rule_{way}",
        )(*given)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(kernel, query, key, value, scalars, start):
    output, _, end = kernel.forward(query, key, value, scalars, start)
    return output, end


def _run_forward(kernel, query, key, value, scalars, start):
    output, states, end = kernel.forward(query, key, value, scalars, start)
    return (output, end), (query, key, value, scalars, states)


def _run_backward(kernel, kept, cotangents):
    backward = tiles.differentiable_once(kernel.backward, "delta_rule")
    query, key, value, pairs, start = backward(*kept, *cotangents)
    none = jnp.zeros_like(pairs[..., :1, :])
    lines = {_BETA: pairs[..., :1, :], _FINE: pairs[..., 1:, :]}
    scalars = jnp.concatenate([lines.get(n, none) for n in range(4)], axis=-2)
    return query, key, value, scalars, start


_run.defvjp(_run_forward, _run_backward)


def heads_of_step(heads: int, key_dim: int, value_dim: int, dtype: Any) -> int:
    """Returns the heads that one step takes: their products fill each other's waits.

    Args:
      heads: Heads of one device.
      key_dim: Size of a key.
      value_dim: Size of a value.
      dtype: Dtype of the tokens.

    Returns:
      4, 2 or 1, a divisor of `heads`; 0 if not even one head fits the chip's memory.
    """
    key, value = tiles.padded(key_dim), tiles.padded(value_dim)
    size, memory = jnp.dtype(dtype).itemsize, 4 * key * value
    kept = size * key * value
    # Backward: tokens and their gradients, and three memories, twice each, for copies.
    each = 2 * (CHUNK * size * (4 * key + 3 * value) + 2 * memory + kept) + memory
    inside = 4 * CHUNK * (24 * CHUNK + 8 * (key + value)) + 4 * memory
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
    if log_decay is not None and log_decay.ndim > 3:
        return "decays of channels"
    if is_divided(value.shape[1]):
        return "rows whose tokens several devices share"
    if heads % columns:
        return f"{heads} heads over {columns} devices"
    if not heads_of_step(heads // columns, query.shape[3], value_dim, query.dtype):
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
    """Applies the rule with decays of heads, or none; see `api.delta_rule`."""
    batch, length, heads, _ = value.shape
    more = -length % CHUNK

    def by_head(x):
        """(batch, length, heads, ...) to (batch, heads, chunks * CHUNK, ...)."""
        x = jnp.pad(x, [(0, 0), (0, more), *[(0, 0)] * (x.ndim - 2)])
        return jnp.moveaxis(x, 2, 1)

    def cut(x):
        return by_head(x.astype(jnp.float32)).reshape(batch, x.shape[2], -1, CHUNK)

    beta = cut(beta)
    coarse = fine = begun = jnp.zeros_like(beta)
    if log_decay is not None:
        coarse, fine = running_sums(cut(log_decay))
    if resets is not None:
        begun = jnp.cumsum(cut(resets[..., None]), axis=-1)
        begun = jnp.broadcast_to(begun, beta.shape)
    scalars = jnp.stack([beta, coarse, fine, begun], axis=3)
    precision = Precision(is_exact=query.dtype.itemsize >= 4)
    at_once = heads_of_step(heads, query.shape[3], value.shape[3], query.dtype)
    kernel = Kernel(at_once, precision, interpret)
    arrays = map(by_head, (query, key, value))
    output, state = _run(kernel, *arrays, scalars, state.astype(jnp.float32))
    return jnp.moveaxis(output, 1, 2)[:, :length], state
