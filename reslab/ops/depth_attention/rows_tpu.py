"""Base of the TPU kernels over a history: blocks of tokens and sources."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from reslab.ops import tiles

# Sources in a block, if all fit into one, and otherwise: merging costs a pass over the
# reading for each block, and more sources leave room for fewer tokens.
LARGEST_WHOLE = 12
LARGEST_CHUNK = 8
# Features mixed at once; the registers hold this many of every source.
LANES_AT_ONCE = 256


@dataclasses.dataclass(frozen=True)
class RowsKernel:
    """Kernels that read the first sources of a history, for some readers.

    Attributes:
      rows: Number of sources, read or not.
      readers: Number of readers.
      width: Features of a source.
      dtype: Dtype of the sources.
      interpret: How to emulate it on another machine; False is not at all.
    """

    rows: int
    readers: int
    width: int
    dtype: Any
    interpret: Any = False

    @property
    def chunks(self) -> int:
        """Blocks of sources."""
        return 1 if self.rows <= LARGEST_WHOLE else -(-self.rows // LARGEST_CHUNK)

    @property
    def chunk(self) -> int:
        """Sources in a block."""
        return -(-self.rows // self.chunks)

    @property
    def part(self) -> int:
        """Tokens that are computed on at once."""
        return tiles.sublanes(self.dtype)

    def block(self, tokens: int, *, is_backward: bool) -> int:
        """Tokens in a block; 0 where not even the least fit the chip."""
        raise NotImplementedError

    def fits(self) -> bool:
        """Returns whether both passes fit the chip."""
        return bool(
            self.block(1, is_backward=False) and self.block(1, is_backward=True)
        )

    def obstacle(self, values: jax.Array) -> str | None:
        """Says what the kernels cannot do about these sources, or None."""
        if found := tiles.common_obstacle(values.dtype, values.shape[1]):
            return found
        if self.fits():
            return None
        one = dataclasses.replace(self, readers=1)
        if one.fits():
            counts = range(self.readers, 0, -1)
            most = next(
                s for s in counts if dataclasses.replace(self, readers=s).fits()
            )
            return f"{self.readers} readers of width {self.width}, the most is {most}"
        most = tiles.padded(self.width)
        while not dataclasses.replace(self, width=most).fits():
            most -= tiles.LANES
        return f"width {self.width}, the widest is {most}"

    def source_specs(self, block: int, at: Any) -> list[Any]:
        """Returns the block index of each source; an unread one keeps its place.

        Args:
          block: Tokens in a block.
          at: Block of tokens and block of sources of a step of the grid.
        """

        def index(place, *grid):
            *steps, limit = grid
            token, chunk = at(*steps)
            is_read = place < limit[0]
            beyond = jnp.maximum(limit[0] - 1 - place, 0)
            last = jax.lax.div(beyond, jnp.int32(self.chunk))
            row = jnp.minimum(chunk, last) * self.chunk + place
            return jnp.where(is_read, row, 0), jnp.where(is_read, token, 0), 0

        return [
            pl.BlockSpec((1, block, self.width), functools.partial(index, place))
            for place in range(self.chunk)
        ]

    def gradient_spec(self, block: int, at: Any, *, is_adding: bool) -> Any:
        """Returns the block index of the gradients of a block's sources.

        Args:
          block: Tokens in a block.
          at: Block of tokens and block of sources of a step of the grid.
          is_adding: Whether they are added to what is there, so that those of sources
            that are not read stay as they are.
        """

        def index(*grid):
            *steps, limit = grid
            token, chunk = at(*steps)
            if is_adding:
                last = jax.lax.div(limit[0] - 1, jnp.int32(self.chunk))
                chunk = jnp.minimum(chunk, last)
            return chunk, token, 0

        return pl.BlockSpec((self.chunk, block, self.width), index)

    def stretches(self) -> list[slice]:
        """The features in pieces that are mixed at once."""
        starts = range(0, self.width, LANES_AT_ONCE)
        return [slice(i, min(i + LANES_AT_ONCE, self.width)) for i in starts]

    def in_parts(self, block: int, function: Any) -> None:
        """Applies a function to all tokens of a block, some at a time."""
        size = min(self.part, block)

        def step(index, _):
            function(pl.ds(pl.multiple_of(index * size, size), size))

        jax.lax.fori_loop(0, block // size, step, None)

    def in_memory(self, values: jax.Array) -> jax.Array:
        """Keeps the compiler from copying all rows into the chip beforehand.

        It does so where they fit, those that are not read among them, and with
        gradients back again.
        """
        if self.interpret:
            return values
        return pltpu.with_memory_space_constraint(values, pltpu.HBM)

    def cost(
        self, tokens: int, flops: int, moved: int, exponentials: int = 0
    ) -> pl.CostEstimate:
        """Builds the cost estimate per source, reader and feature, or token."""
        size = jnp.dtype(self.dtype).itemsize
        return pl.CostEstimate(
            flops=flops * self.rows * self.readers * tokens * self.width,
            transcendentals=exponentials * self.rows * self.readers * tokens,
            bytes_accessed=moved * tokens * self.width * size,
        )


def side_by_side(columns: list[jax.Array]) -> jax.Array:
    """Columns (tokens, 1) as one array (tokens, columns)."""
    if len(columns) == 1:
        return columns[0]
    lane = jax.lax.broadcasted_iota(jnp.int32, (1, len(columns)), 1)
    return functools.reduce(
        jnp.add, [jnp.where(lane == s, c, 0.0) for s, c in enumerate(columns)]
    )
