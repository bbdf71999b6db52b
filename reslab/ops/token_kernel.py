"""TPU kernels for functions of one token at a time, with their gradients.

An operation is written once, as a function of tiles in float32. Here are the loop over
blocks of tokens and the backward pass, which differentiates that function inside the
kernel: what is read from memory is the kept arrays and the gradients of the results,
and nothing in between is written.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from reslab.ops import tiles

Arrays = tuple[jax.Array, ...]
# Tile elements per part; measured in scheduled bundles at a width of 2,048, where twice
# and half as many took 10% more.
PART_ELEMENTS = 2**16

# (tiles (rows, width), parameters (1 or more, width)) -> tiles, all in float32.
Function = Callable[[Arrays, Arrays], Arrays]


@dataclasses.dataclass(frozen=True)
class TokenKernel:
    """A function of tokens, run block by block.

    Attributes:
      name: What a profile shows.
      function: The function.
      temporaries: Tiles of float32 that it holds at once beside what it is given.
      interpret: How to emulate it on another machine; False is not at all.
    """

    name: str
    function: Function
    temporaries: int = 2
    interpret: Any = False

    def rows(
        self,
        given: Sequence[Any],
        results: Sequence[Any],
        parameters: Sequence[Any] = (),
    ) -> int:
        """Rows of a block for arrays (tokens, width) of these shapes; 0 for none."""
        each = [*given, *results]
        widest = max(tiles.padded(a.shape[1]) for a in each)
        moved = sum(2 * tiles.padded(a.shape[1]) * a.dtype.itemsize for a in each)
        held = sum(4 * tiles.padded(a.shape[1]) for a in each)
        fixed = sum(2 * 4 * 8 * tiles.padded(p.shape[1]) for p in parameters)
        narrowest = min((a.dtype for a in each), key=lambda dtype: dtype.itemsize)
        return tiles.block_rows(
            moved + held + 4 * widest * self.temporaries,
            narrowest,
            each[0].shape[0],
            fixed=fixed,
        )

    def forward_rows(self, given: Any, parameters: Any, results: Any) -> int:
        """Rows of a block of the forward pass."""
        return self.rows(given, results, parameters)

    def backward_rows(self, kept: Any, parameters: Any, results: Any) -> int:
        """Rows of a block of the backward pass."""
        # Gradients have the same shapes, and more arrays are live at once.
        doubled = (*kept, *results, *kept)
        return self.rows(doubled, (), (*parameters, *parameters))

    def parts(self, block: int, width: int) -> int:
        """Returns the number of parts in which a block is computed.

        Tiles of a part stay in the registers; of a whole block they would be stored
        and loaded again at every operation. Parts any smaller wait for their sums.
        """
        size = tiles.sublanes(jnp.bfloat16)
        while 2 * size * tiles.padded(width) <= PART_ELEMENTS:
            size *= 2
        return max(1, block // size)

    def _in_parts(self, block: int, width: int, part: Callable[[Any], None]) -> None:
        count = self.parts(block, width)
        size = block // count

        def step(index, _):
            part(pl.ds(pl.multiple_of(index * size, size), size))

        if count == 1:
            part(pl.ds(0, block))
        else:
            jax.lax.fori_loop(0, count, step, None)

    def apply(
        self,
        given: Arrays,
        parameters: Arrays,
        results: Sequence[jax.ShapeDtypeStruct],
    ) -> Arrays:
        """Computes `function`.

        Args:
          given: Arrays (tokens, width).
          parameters: Arrays (any, width), float32.
          results: Shapes and dtypes of what it returns.
        """
        block = self.forward_rows(given, parameters, results)
        count = len(given)

        def body(*refs):
            rows = [ref[...] for ref in refs[count : count + len(parameters)]]

            def part(at):
                values = tuple(ref[at, :].astype(jnp.float32) for ref in refs[:count])
                outputs = self.function(values, tuple(rows))
                for ref, value in zip(refs[count + len(rows) :], outputs, strict=True):
                    ref[at, :] = value.astype(ref.dtype)

            self._in_parts(block, given[0].shape[1], part)

        return pl.pallas_call(
            body,
            grid=(pl.cdiv(given[0].shape[0], block),),
            in_specs=[
                *(_block(a, block) for a in given),
                *(_whole(p) for p in parameters),
            ],
            out_specs=[_block(a, block) for a in results],
            out_shape=list(results),
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
            cost_estimate=_cost(given, parameters, results, 4),
            interpret=self.interpret,
            name=self.name,
        )(*given, *parameters)

    def pull(
        self, kept: Arrays, parameters: Arrays, cotangents: Arrays
    ) -> tuple[Arrays, Arrays]:
        """Computes the gradients of what was kept and of the parameters.

        Args:
          kept: Arrays (tokens, width) that `function` is differentiated at.
          parameters: Arrays (any, width), float32.
          cotangents: Gradients of its results.

        Returns:
          Gradients like `kept`, and like `parameters`, summed over tokens in float32.
        """
        tokens = kept[0].shape[0]
        block = self.backward_rows(kept, parameters, cotangents)
        blocks = pl.cdiv(tokens, block)
        # The two cores of a chip share a parallel axis; each accumulates separately.
        cores = 2 if blocks % 2 == 0 else 1
        each = blocks // cores
        first, second = len(kept), len(kept) + len(parameters)

        def body(*refs):
            given, rest = refs[: second + len(cotangents)], refs[second:]
            outputs = rest[len(cotangents) :]
            rows = tuple(ref[...] for ref in given[first:second])
            begin = (pl.program_id(0) * each + pl.program_id(1)) * block

            @pl.when(pl.program_id(1) == 0)
            def _():
                for ref in outputs[first:]:
                    ref[...] = jnp.zeros_like(ref)

            def part(at):
                row = jax.lax.broadcasted_iota(jnp.int32, (at.size, 1), 0)
                exists = begin + at.start + row < tokens

                def tile(ref):
                    value = ref[at, :].astype(jnp.float32)
                    # Values past the last token are undefined.
                    return jnp.where(exists, value, 0.0) if tokens % block else value

                values = tuple(tile(ref) for ref in given[:first])
                gradients = tuple(tile(ref) for ref in given[second:])
                _, pulled = jax.vjp(self.function, values, rows)
                by_kept, by_rows = pulled(gradients)
                for ref, value in zip(outputs[:first], by_kept, strict=True):
                    ref[at, :] = value.astype(ref.dtype)
                for ref, value in zip(outputs[first:], by_rows, strict=True):
                    ref[0] += value

            self._in_parts(block, kept[0].shape[1], part)

        def at(core, step):
            return core * each + step

        sums = [
            jax.ShapeDtypeStruct((cores, *p.shape), jnp.float32) for p in parameters
        ]
        shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in kept]
        results = pl.pallas_call(
            body,
            grid=(cores, each),
            in_specs=[
                *(_block(a, block, at) for a in kept),
                *(_whole(p) for p in parameters),
                *(_block(a, block, at) for a in cotangents),
            ],
            out_specs=[
                *(_block(a, block, at) for a in kept),
                *(
                    pl.BlockSpec((1, *p.shape), lambda core, step: (core, 0, 0))
                    for p in parameters
                ),
            ],
            out_shape=[*shapes, *sums],
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "arbitrary")
            ),
            cost_estimate=_cost((*kept, *cotangents), parameters, kept, 12),
            interpret=self.interpret,
            name=f"{self.name}_backward",
        )(*kept, *parameters, *cotangents)
        return tuple(results[:first]), tuple(r.sum(0) for r in results[first:])


def _block(array: Any, rows: int, at: Callable[..., Any] = lambda step: step) -> Any:
    return pl.BlockSpec((rows, array.shape[1]), lambda *grid: (at(*grid), 0))


def _whole(array: Any) -> Any:
    return pl.BlockSpec(array.shape, lambda *grid: (0, 0))


def _cost(given: Any, parameters: Any, results: Any, flops: int) -> pl.CostEstimate:
    """Builds the cost estimate of a call; its bytes are those moved."""
    arrays = (*given, *parameters, *results)
    return pl.CostEstimate(
        flops=flops * sum(math.prod(a.shape) for a in arrays),
        transcendentals=given[0].shape[0],
        bytes_accessed=sum(math.prod(a.shape) * a.dtype.itemsize for a in arrays),
    )
