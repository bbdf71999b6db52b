"""Weighted sums of a history on a TPU, by weights that are given.

The blocks are those of `RowsKernel`: sources beyond the limit are not copied from
memory. The backward pass reads a source and adds to its gradient where it lies; the
products of sources with the gradients of the sums are those of the weights.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from reslab.ops import tiles
from reslab.ops.depth_attention.rows_tpu import RowsKernel


class Mixing(RowsKernel):
    """The kernels of weighted sums, one for each reader.

    Weights, and their gradients, are arrays (tokens, rows * readers): all of a token
    lie side by side, and are in the chip while its sources pass.
    """

    def block(self, tokens: int, *, is_backward: bool) -> int:
        """Tokens in a block; 0 where not even the least fit the chip."""
        size, width = jnp.dtype(self.dtype).itemsize, tiles.padded(self.width)
        beside = 4 * tiles.padded(self.rows * self.readers)
        if is_backward:
            # Sources, their gradients before and after, and the gradients of the sums.
            moved = 2 * size * (3 * self.chunk + self.readers)
        else:
            moved = 2 * size * (self.chunk + self.readers)
            moved += 4 * self.readers * (self.chunks > 1)
        return tiles.block_rows(
            width * moved + 4 * beside, self.dtype, tokens, fixed=2**20, most=128
        )

    def to_columns(self, weights: jax.Array, limit: jax.Array) -> jax.Array:
        """Weights (readers, rows, tokens) for the kernels, zero from `limit` on."""
        return self._masked(weights, limit).transpose(2, 1, 0).reshape(-1, self._count)

    def from_columns(self, columns: jax.Array, limit: jax.Array) -> jax.Array:
        """The inverse of `to_columns`, for their gradients."""
        apart = columns.reshape(-1, self.rows, self.readers).transpose(2, 1, 0)
        return self._masked(apart, limit)

    @property
    def _count(self) -> int:
        return self.rows * self.readers

    def _masked(self, weights, limit):
        is_read = jnp.arange(self.rows, dtype=jnp.int32) < limit
        return jnp.where(is_read[None, :, None], weights, 0)

    def _is_own(self, first: Any, place: int, reader: int) -> jax.Array:
        """Returns the column of a source of a block (1, columns)."""
        lane = jax.lax.broadcasted_iota(jnp.int32, (1, self._count), 1)
        return lane == (first + place) * self.readers + reader

    def _apart(self, weights: jax.Array, first: Any) -> list[list[jax.Array]]:
        """Columns (tokens, 1) of the sources of a block, by source and reader."""
        return [
            [
                jnp.sum(
                    jnp.where(self._is_own(first, place, s), weights, 0.0),
                    axis=-1,
                    keepdims=True,
                )
                for s in range(self.readers)
            ]
            for place in range(self.chunk)
        ]

    def forward(
        self, values: jax.Array, columns: jax.Array, limit: jax.Array
    ) -> jax.Array:
        """Mixes.

        Args:
          values: The sources (rows, tokens, width).
          columns: The weights, float32.
          limit: Number of sources to read, at least 1 (1,).

        Returns:
          The sums (readers, tokens, width).
        """
        tokens, readers, width = values.shape[1], self.readers, self.width
        block = self.block(tokens, is_backward=False)

        def body(limit, *refs):
            sources, (weight, out, *running) = refs[: self.chunk], refs[self.chunk :]
            first = pl.program_id(1) * self.chunk
            is_last = pl.program_id(1) == self.chunks - 1

            def part(at):
                weights = self._apart(weight[at, :], first)
                for lanes in self.stretches():
                    wide = [ref[0, at, lanes].astype(jnp.float32) for ref in sources]
                    for s in range(readers):
                        terms = [
                            own[s] * v for own, v in zip(weights, wide, strict=True)
                        ]
                        mixed = functools.reduce(jnp.add, terms)
                        if not running:
                            out[s, at, lanes] = mixed.astype(out.dtype)
                            continue
                        total = running[0]
                        earlier = jnp.where(first == 0, 0.0, total[s, at, lanes])
                        total[s, at, lanes] = earlier + mixed

            @pl.when(first < limit[0])
            def _():
                self.in_parts(block, part)

            if running:

                @pl.when(is_last)
                def _():
                    out[...] = running[0][...].astype(out.dtype)

        def at(token, chunk):
            return token, chunk

        return pl.pallas_call(
            body,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=1,
                grid=(pl.cdiv(tokens, block), self.chunks),
                in_specs=[
                    *self.source_specs(block, at),
                    pl.BlockSpec((block, self._count), lambda i, c, _: (i, 0)),
                ],
                out_specs=pl.BlockSpec(
                    (readers, block, width), lambda i, c, _: (0, i, 0)
                ),
                scratch_shapes=[pltpu.VMEM((readers, block, width), jnp.float32)]
                * (self.chunks > 1),
            ),
            out_shape=jax.ShapeDtypeStruct((readers, tokens, width), values.dtype),
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "arbitrary")
            ),
            cost_estimate=self.cost(tokens, 2, self.rows + readers),
            interpret=self.interpret,
            name="depth_mix",
        )(limit, *[self.in_memory(values)] * self.chunk, columns)

    def backward(
        self,
        values: jax.Array,
        columns: jax.Array,
        limit: jax.Array,
        by_mixed: jax.Array,
        by_later: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Gradients of the sources and of the weights.

        Those of the sources are added to `by_later`, in place, which is then neither
        read nor written where sources were not; without it, they are zero there.
        """
        tokens, readers, width = values.shape[1], self.readers, self.width
        block = self.block(tokens, is_backward=True)
        is_adding = by_later is not None

        def body(limit, *refs):
            sources, (weight, by_out, *rest) = refs[: self.chunk], refs[self.chunk :]
            later = [rest.pop(0)] if is_adding else []
            by_values, by_weight = rest
            first = pl.program_id(1) * self.chunk

            if not is_adding:

                @pl.when(first >= limit[0])
                def _():
                    by_values[...] = jnp.zeros_like(by_values)

            def part(at):
                said = jnp.where(first == 0, 0.0, by_weight[at, :])
                for place, ref in enumerate(sources):
                    v = ref[0, at, :].astype(jnp.float32)
                    for s in range(readers):
                        pull = by_out[s, at, :].astype(jnp.float32)
                        column = jnp.sum(pull * v, axis=-1, keepdims=True)
                        said = jnp.where(self._is_own(first, place, s), column, said)
                by_weight[at, :] = said
                weights = self._apart(weight[at, :], first)
                for lanes in self.stretches():
                    pulls = [
                        by_out[s, at, lanes].astype(jnp.float32) for s in range(readers)
                    ]
                    for place in range(self.chunk):
                        terms = [
                            one * pull
                            for one, pull in zip(weights[place], pulls, strict=True)
                        ]
                        if is_adding:
                            terms.append(later[0][place, at, lanes].astype(jnp.float32))
                        gradient = functools.reduce(jnp.add, terms)
                        by_values[place, at, lanes] = gradient.astype(by_values.dtype)

            @pl.when(first < limit[0])
            def _():
                self.in_parts(block, part)

        def at(token, chunk):
            return token, chunk

        gradients = self.gradient_spec(block, at, is_adding=is_adding)
        beside = pl.BlockSpec((block, self._count), lambda i, c, _: (i, 0))
        arguments = [limit, *[self.in_memory(values)] * self.chunk, columns, by_mixed]
        return pl.pallas_call(
            body,
            input_output_aliases={len(arguments): 0} if is_adding else {},
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=1,
                grid=(pl.cdiv(tokens, block), self.chunks),
                in_specs=[
                    *self.source_specs(block, at),
                    beside,
                    pl.BlockSpec((readers, block, width), lambda i, c, _: (0, i, 0)),
                    *([gradients] if is_adding else []),
                ],
                out_specs=[gradients, beside],
            ),
            out_shape=[
                jax.ShapeDtypeStruct(values.shape, values.dtype),
                jax.ShapeDtypeStruct(columns.shape, jnp.float32),
            ],
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "arbitrary")
            ),
            cost_estimate=self.cost(tokens, 4, 2 * self.rows + readers),
            interpret=self.interpret,
            name="depth_mix_backward",
        )(*arguments, *([] if by_later is None else [self.in_memory(by_later)]))


def obstacle(values: jax.Array, readers: int) -> str | None:
    """Says what the kernel cannot do about these arguments, or None."""
    mixing = Mixing(values.shape[0], readers, values.shape[-1], values.dtype)
    return mixing.obstacle(values)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def mix(
    values: jax.Array, weights: jax.Array, limit: jax.Array, interpret: Any = False
) -> jax.Array:
    """Runs the kernel on each device's own part of the batch; see `api.depth_mix`."""
    return _forward(values, weights, limit, interpret)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def mix_through(
    values: jax.Array, weights: jax.Array, limit: jax.Array, interpret: Any = False
) -> tuple[jax.Array, jax.Array]:
    """The same, and the sources, which later readers are to be given."""
    return _forward(values, weights, limit, interpret)[0], values


def _forward(values, weights, limit, interpret):
    def local(values, weights, limit, *, axes):
        del axes
        kernel = _kernel(values, weights, interpret)
        columns = kernel.to_columns(_flat(weights, 2), limit)
        mixed = kernel.forward(_flat(values, 1, 1), columns, limit)
        return mixed.reshape(weights.shape[0], *values.shape[1:])

    run = tiles.over_batch(local, (1, 2, None), 1)
    once = tiles.differentiable_once(run, "depth_mix")
    mixed = once(values, weights, jnp.reshape(limit, (1,)))
    return mixed, (values, weights, limit)


def _forward_through(values, weights, limit, interpret):
    mixed, kept = _forward(values, weights, limit, interpret)
    return (mixed, values), kept


def _backward(interpret, kept, by_mixed, *by_later):
    def local(values, weights, limit, *cotangents, axes):
        del axes
        kernel = _kernel(values, weights, interpret)
        columns = kernel.to_columns(_flat(weights, 2), limit)
        flat = (_flat(cotangent, 1, 1) for cotangent in cotangents)
        gradients = kernel.backward(_flat(values, 1, 1), columns, limit, *flat)
        by_values, by_columns = gradients
        by_weights = kernel.from_columns(by_columns, limit).reshape(weights.shape)
        return by_values.reshape(values.shape), by_weights

    values, weights, limit = kept
    cotangents = by_mixed, *by_later
    run = tiles.over_batch(local, (1, 2, None, *(1,) * len(cotangents)), (1, 2))
    once = tiles.differentiable_once(run, "depth_mix")
    return *once(values, weights, jnp.reshape(limit, (1,)), *cotangents), None


def _backward_through(interpret, kept, cotangents):
    return _backward(interpret, kept, *cotangents)


def _kernel(values, weights, interpret):
    shape = values.shape[0], weights.shape[0], values.shape[-1]
    return Mixing(*shape, values.dtype, interpret)


def _flat(array, before, after=0):
    """Merges all axes between the given ones into one."""
    shape = array.shape
    return array.reshape(*shape[:before], -1, *shape[len(shape) - after :])


mix.defvjp(_forward, _backward)
mix_through.defvjp(_forward_through, _backward_through)
