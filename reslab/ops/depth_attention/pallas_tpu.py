"""Attention along depth on a TPU: each source is read once, each way.

A block holds some tokens of some sources. Blocks of later sources are merged with a
running softmax, so the number of sources has no limit, and sources that are not to be
read yet are not copied from memory: their index stays where it was.

The backward pass needs no second pass over the sources either. With the reading o and
its logarithm kept, the weight of a source and the gradient of its logit are

    a_n = exp(l_n - lse),    d_n = a_n (do . v_n - do . o + dlse)

which are known block by block. Where one block holds all sources, o is not read.

Products with queries are the matrix unit's: a query in float32 is three in bfloat16,
whose products with a bfloat16 source are exact. What differs by token is left to the
vector unit, which is what limits these kernels where memory does not.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from reslab.ops import tiles
from reslab.ops.depth_attention.rows_tpu import RowsKernel, side_by_side

# Finite: infinity minus infinity is NaN.
LOWEST = -1e30


@dataclasses.dataclass(frozen=True)
class Reading(RowsKernel):
    """The kernels of one reading.

    Attributes:
      epsilon: Added to mean squares before the root.
      (and those of `RowsKernel`)
    """

    epsilon: float = 1e-6

    def block(self, tokens: int, *, is_backward: bool) -> int:
        """Tokens in a block; 0 where not even the least fit the chip."""
        size, width = jnp.dtype(self.dtype).itemsize, tiles.padded(self.width)
        outer = 1 if self.chunks == 1 else 2
        if is_backward:
            # Sources, their gradients before and after, and the gradients of the
            # readings.
            moved = 2 * size * (3 * self.chunk + outer * self.readers)
        else:
            moved = 2 * size * (self.chunk + self.readers)
            moved += 4 * self.readers * (outer - 1)
        columns = 4 * tiles.LANES * (4 + 2 * self.chunk + 3 * self.readers)
        fixed = 32 * width * max(8, self.readers) + 4 * width * self.part * 8
        return tiles.block_rows(
            width * moved + columns, self.dtype, tokens, fixed=fixed, most=128
        )

    def multiply(self, refs: Any, query: Any, products: Any) -> None:
        """Products of all sources of a block with all queries, to a scratch."""
        if not self.uses_matrix_unit:
            return
        exact = jax.lax.Precision.HIGHEST if self.dtype == jnp.float32 else None
        for place, ref in enumerate(refs):
            product = jax.lax.dot_general(
                ref[0],
                query[...],
                (((1,), (1,)), ((), ())),
                precision=exact,
                preferred_element_type=jnp.float32,
            )
            pieces = product.shape[1] // self.readers
            products[place] = functools.reduce(
                jnp.add,
                [
                    product[:, i * self.readers : (i + 1) * self.readers]
                    for i in range(pieces)
                ],
            )

    @property
    def uses_matrix_unit(self) -> bool:
        """Returns whether there are enough queries to fill the matrix unit."""
        return self.readers > 2

    def logits(
        self, refs: Any, at: Any, query: Any, products: Any, first: Any, limit: Any
    ) -> Any:
        """Logits of each source (tokens, readers), and inverse roots (tokens, 1)."""
        logits, roots = [], []
        for place, ref in enumerate(refs):
            v = ref[0, at, :].astype(jnp.float32)
            mean = jnp.sum(v * v, axis=-1, keepdims=True) * (1.0 / self.width)
            root = jax.lax.rsqrt(mean + self.epsilon)
            if self.uses_matrix_unit:
                product = products[place, at, :]
            else:
                rows = [query[s : s + 1, :] for s in range(self.readers)]
                columns = [jnp.sum(v * row, axis=-1, keepdims=True) for row in rows]
                product = side_by_side(columns)
            logit = product * root
            logits.append(jnp.where(first + place < limit, logit, LOWEST))
            roots.append(root)
        return logits, roots

    def pieces(self, queries: jax.Array) -> jax.Array:
        """The queries as the matrix unit takes them, all of the sources' dtype."""
        if self.dtype == jnp.float32 or not self.uses_matrix_unit:
            return queries
        found, rest = [], queries
        for _ in range(3):
            # Not a round trip of conversions, which the compiler may remove.
            found.append(jax.lax.reduce_precision(rest, 8, 7))
            rest = rest - found[-1]
        return jnp.concatenate(found).astype(self.dtype)

    def forward(
        self, values: jax.Array, queries: jax.Array, limit: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Reads.

        Args:
          values: The sources (rows, tokens, width).
          queries: Shape (readers, width), float32.
          limit: Number of sources to read, at least 1 (1,).

        Returns:
          The readings (readers, tokens, width) and logarithms (tokens, readers).
        """
        tokens = values.shape[1]
        block = self.block(tokens, is_backward=False)
        readers, width = self.readers, self.width
        values, queries = self.in_memory(values), self.pieces(queries)
        running = [
            pltpu.VMEM((readers, block, width), jnp.float32),
            pltpu.VMEM((block, readers), jnp.float32),
            pltpu.VMEM((block, readers), jnp.float32),
        ]

        def body(limit, *refs):
            sources, rest = refs[: self.chunk], refs[self.chunk :]
            query, out, lse, products, *running = rest
            nothing: list[Any] = [None] * 3
            total, largest, mass = running or nothing
            first = pl.program_id(1) * self.chunk
            is_new = first == 0

            def part(at):
                logits, _ = self.logits(sources, at, query, products, first, limit[0])
                top: Any = functools.reduce(jnp.maximum, logits)
                shrink: Any = None
                if running:
                    before = jnp.where(is_new, LOWEST, largest[at, :])
                    top = jnp.maximum(top, before)
                    shrink = jnp.exp(before - top)
                shares = [jnp.exp(logit - top) for logit in logits]
                norm = functools.reduce(jnp.add, shares)
                if running:
                    largest[at, :] = top
                    norm = norm + jnp.where(is_new, 0.0, mass[at, :] * shrink)
                    mass[at, :] = norm
                else:
                    lse[at, :] = top + jnp.log(norm)
                    inverse = 1.0 / norm
                    shares = [share * inverse for share in shares]
                for lanes in self.stretches():
                    values = [ref[0, at, lanes].astype(jnp.float32) for ref in sources]
                    for s in range(readers):
                        terms = [
                            share[:, s : s + 1] * v
                            for share, v in zip(shares, values, strict=True)
                        ]
                        mixed = functools.reduce(jnp.add, terms)
                        if not running:
                            out[s, at, lanes] = mixed.astype(out.dtype)
                            continue
                        earlier = total[s, at, lanes] * shrink[:, s : s + 1]
                        total[s, at, lanes] = mixed + jnp.where(is_new, 0.0, earlier)

            @pl.when(first < limit[0])
            def _():
                self.multiply(sources, query, products)
                self.in_parts(block, part)

            def finish(at):
                inverse = 1.0 / mass[at, :]
                lse[at, :] = largest[at, :] + jnp.log(mass[at, :])
                for s in range(readers):
                    mixed = total[s, at, :] * inverse[:, s : s + 1]
                    out[s, at, :] = mixed.astype(out.dtype)

            if running:

                @pl.when(pl.program_id(1) == self.chunks - 1)
                def _():
                    self.in_parts(block, finish)

        def at(token, chunk):
            return token, chunk

        return pl.pallas_call(
            body,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=1,
                grid=(pl.cdiv(tokens, block), self.chunks),
                in_specs=[
                    *self.source_specs(block, at),
                    pl.BlockSpec(queries.shape, lambda *_: (0, 0)),
                ],
                out_specs=[
                    pl.BlockSpec((readers, block, width), lambda i, c, _: (0, i, 0)),
                    pl.BlockSpec((block, readers), lambda i, c, _: (i, 0)),
                ],
                scratch_shapes=[
                    pltpu.VMEM((self.chunk, block, readers), jnp.float32),
                    *([] if self.chunks == 1 else running),
                ],
            ),
            out_shape=[
                jax.ShapeDtypeStruct((readers, tokens, width), values.dtype),
                jax.ShapeDtypeStruct((tokens, readers), jnp.float32),
            ],
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "arbitrary")
            ),
            cost_estimate=self.cost(tokens, 6, self.rows + readers, 2),
            interpret=self.interpret,
            name="depth_read",
        )(limit, *[values] * self.chunk, queries)

    def backward(
        self,
        values: jax.Array,
        queries: jax.Array,
        limit: jax.Array,
        reading: jax.Array,
        lse: jax.Array,
        by_reading: jax.Array,
        by_lse: jax.Array,
        by_later: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Gradients of the sources and of the queries.

        Those of the sources are added to `by_later`, in place, which is then neither
        read nor written where sources were not; without it, they are zero there.
        """
        tokens = values.shape[1]
        block = self.block(tokens, is_backward=True)
        readers, width = self.readers, self.width
        blocks = pl.cdiv(tokens, block)
        cores = 2 if blocks % 2 == 0 else 1
        each = blocks // cores

        is_whole, is_adding = self.chunks == 1, by_later is not None
        values, pieces = self.in_memory(values), self.pieces(queries)

        def body(limit, *refs):
            sources, rest = refs[: self.chunk], refs[self.chunk :]
            piece, query, log, by_out, by_log, *rest = rest
            out = [] if is_whole else [rest.pop(0)]
            later = [rest.pop(0)] if is_adding else []
            by_values, by_query, products, *offset = rest
            first = pl.program_id(2) * self.chunk
            begin = (pl.program_id(0) * each + pl.program_id(1)) * block

            @pl.when((pl.program_id(1) == 0) & (first == 0))
            def _():
                by_query[...] = jnp.zeros_like(by_query)

            def prepare(at):
                columns = []
                for s in range(readers):
                    one, other = (ref[s, at, :].astype(jnp.float32) for ref in both)
                    columns.append(jnp.sum(one * other, axis=-1, keepdims=True))
                offset[0][at, :] = by_log[at, :] - side_by_side(columns)

            if not is_whole:
                both = by_out, out[0]

                @pl.when(first == 0)
                def _():
                    self.in_parts(block, prepare)

            if not is_whole and not is_adding:

                @pl.when(first >= limit[0])
                def _():
                    by_values[...] = jnp.zeros_like(by_values)

            def part(at):
                row = jax.lax.broadcasted_iota(jnp.int32, (at.size, 1), 0)
                exists = begin + at.start + row < tokens
                logits, roots = self.logits(
                    sources, at, query, products, first, limit[0]
                )
                shares = [jnp.exp(logit - log[at, :]) for logit in logits]
                said = []
                for ref in sources:
                    v = ref[0, at, :].astype(jnp.float32)
                    columns = [
                        jnp.sum(
                            by_out[s, at, :].astype(jnp.float32) * v,
                            axis=-1,
                            keepdims=True,
                        )
                        for s in range(readers)
                    ]
                    said.append(side_by_side(columns))
                if is_whole:
                    terms = [a * b for a, b in zip(shares, said, strict=True)]
                    shift = by_log[at, :] - functools.reduce(jnp.add, terms)
                else:
                    shift = offset[0][at, :]
                along, radial = [], []
                for place, root in enumerate(roots):
                    pulled = shares[place] * (said[place] + shift)
                    if tokens % block:
                        # Values past the last token are undefined.
                        pulled = jnp.where(exists, pulled, 0.0)
                        root = jnp.where(exists, root, 0.0)
                    turned = jnp.sum(pulled * logits[place], axis=-1, keepdims=True)
                    along.append(pulled * root)
                    radial.append(turned * root * root * (1.0 / width))
                for lanes in self.stretches():
                    pulls = [
                        by_out[s, at, lanes].astype(jnp.float32) for s in range(readers)
                    ]
                    rows = [query[s : s + 1, lanes] for s in range(readers)]
                    sums: list[Any] = [0.0] * readers
                    for place, ref in enumerate(sources):
                        v = ref[0, at, lanes].astype(jnp.float32)
                        if tokens % block:
                            v = jnp.where(exists, v, 0.0)
                        gradient = -radial[place] * v
                        if is_adding:
                            gradient += later[0][place, at, lanes].astype(jnp.float32)
                        for s in range(readers):
                            share = shares[place][:, s : s + 1]
                            factor = along[place][:, s : s + 1]
                            gradient += share * pulls[s] + factor * rows[s]
                            sums[s] += factor * v
                        by_values[place, at, lanes] = gradient.astype(by_values.dtype)
                    for s in range(readers):
                        here = jnp.sum(sums[s], axis=0, keepdims=True)
                        by_query[0, s : s + 1, lanes] += here

            @pl.when(first < limit[0])
            def _():
                self.multiply(sources, piece, products)
                self.in_parts(block, part)

        def at(core, step, chunk):
            return core * each + step, chunk

        readings = pl.BlockSpec(
            (readers, block, width), lambda k, i, c, _: (0, k * each + i, 0)
        )
        columns = pl.BlockSpec((block, readers), lambda k, i, c, _: (k * each + i, 0))
        gradients = self.gradient_spec(block, at, is_adding=is_adding)
        arguments = [limit, *[values] * self.chunk, pieces, queries]
        arguments += [lse, by_reading, by_lse, *([] if is_whole else [reading])]
        by_values, by_queries = pl.pallas_call(
            body,
            input_output_aliases={len(arguments): 0} if is_adding else {},
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=1,
                grid=(cores, each, self.chunks),
                in_specs=[
                    *self.source_specs(block, at),
                    pl.BlockSpec(pieces.shape, lambda *_: (0, 0)),
                    pl.BlockSpec(queries.shape, lambda *_: (0, 0)),
                    columns,
                    readings,
                    columns,
                    *([] if is_whole else [readings]),
                    *([gradients] if is_adding else []),
                ],
                out_specs=[
                    gradients,
                    pl.BlockSpec((1, readers, width), lambda k, i, c, _: (k, 0, 0)),
                ],
                scratch_shapes=[
                    pltpu.VMEM((self.chunk, block, readers), jnp.float32),
                    *([] if is_whole else [pltpu.VMEM((block, readers), jnp.float32)]),
                ],
            ),
            out_shape=[
                jax.ShapeDtypeStruct(values.shape, values.dtype),
                jax.ShapeDtypeStruct((cores, readers, width), jnp.float32),
            ],
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "arbitrary", "arbitrary")
            ),
            cost_estimate=self.cost(tokens, 14, 2 * self.rows + 2 * readers, 2),
            interpret=self.interpret,
            name="depth_read_backward",
        )(
            *arguments,
            *([] if by_later is None else [self.in_memory(by_later)]),
        )
        return by_values, by_queries.sum(0)


def obstacle(values: jax.Array, readers: int) -> str | None:
    """Says what the kernel cannot do about these arguments, or None."""
    reading = Reading(values.shape[0], readers, values.shape[-1], values.dtype)
    return reading.obstacle(values)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def read(
    values: jax.Array,
    queries: jax.Array,
    limit: jax.Array,
    epsilon: float,
    interpret: Any = False,
) -> tuple[jax.Array, jax.Array]:
    """Runs the kernel on each device's own part of the batch; see `api.depth_read`."""
    return _forward(values, queries, limit, epsilon, interpret)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def read_through(
    values: jax.Array,
    queries: jax.Array,
    limit: jax.Array,
    epsilon: float,
    interpret: Any = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The same, and the sources, which later readers are to be given.

    So the gradient that comes from later readers is at hand when this one's is taken,
    and is added to in the place where it lies.
    """
    return *_forward(values, queries, limit, epsilon, interpret)[0], values


def _reading(values, queries, epsilon, interpret):
    rows, width, readers = values.shape[0], values.shape[-1], queries.shape[0]
    return Reading(rows, readers, width, values.dtype, interpret, epsilon)


def _flat(values):
    return values.reshape(values.shape[0], -1, values.shape[-1])


def _forward(values, queries, limit, epsilon, interpret):
    kernel = _reading(values, queries, epsilon, interpret)

    def local(values, queries, limit, *, axes):
        del axes
        reading, lse = kernel.forward(_flat(values), queries, limit)
        shape = (queries.shape[0], *values.shape[1:])
        return reading.reshape(shape), lse.T.reshape(shape[:-1])

    run = tiles.over_batch(local, (1, None, None), (1, 1))
    once = tiles.differentiable_once(run, "depth_read")
    outputs = once(values, queries, jnp.reshape(limit, (1,)))
    return outputs, (values, queries, limit, *outputs)


def _forward_through(values, queries, limit, epsilon, interpret):
    outputs, kept = _forward(values, queries, limit, epsilon, interpret)
    return (*outputs, values), kept


def _backward(epsilon, interpret, kept, cotangents):
    values, queries, limit, *outputs = kept
    kernel = _reading(values, queries, epsilon, interpret)

    def local(values, queries, limit, reading, lse, by_reading, by_lse, *later, axes):
        flat = _flat(values)
        shape = (queries.shape[0], *flat.shape[1:])
        columns = (a.reshape(shape[:-1]).T for a in (lse, by_lse))
        lse, by_lse = columns
        by_values, by_queries = kernel.backward(
            *(flat, queries, limit, reading.reshape(shape), lse),
            *(by_reading.reshape(shape), by_lse, *map(_flat, later)),
        )
        return by_values.reshape(values.shape), tiles.summed(by_queries, axes)

    by_reading = (1,) * (len(outputs) + len(cotangents))
    run = tiles.over_batch(local, (1, None, None, *by_reading), (1, -1))
    once = tiles.differentiable_once(run, "depth_read")
    limit = jnp.reshape(limit, (1,))
    return *once(values, queries, limit, *outputs, *cotangents), None


read.defvjp(_forward, _backward)
read_through.defvjp(_forward_through, _backward)
