"""Base of mixers over the patches of an image: every token sees all others."""

import math
from collections.abc import Collection
from typing import Any, ClassVar, Literal, NoReturn

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from reslab.core.bounds import bounded
from reslab.core.errors import ReslabError
from reslab.core.parameters import parameter
from reslab.core.precision import statistics_dtype
from reslab.core.types import Shared, State
from reslab.nn.base.projection import ProjectingModule


@bounded
class GridMixer(ProjectingModule):
    """Base of mixers whose tokens are the places of a grid, row by row.

    They read later tokens, so causal models refuse them, and they do not generate. A
    row of a batch is one image: several documents in it are refused where they are
    known; inside `jit`, where they are not, its output is NaN.

    Attributes:
      grid: Rows and columns; () is as square as the number of tokens allows.
      use_bias: Whether the projections have biases.
      (and those of `ProjectingModule`)

    Raises:
      ReslabError: If the grid has another number of places than tokens are given.
    """

    grid: tuple[int, ...] = ()
    use_bias: bool = True

    writes_shared: ClassVar[tuple[str, ...]] = ()
    is_bidirectional: ClassVar[Literal[True]] = True

    def mix(self, x: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """Mixes `x` (batch, rows * columns, embed)."""
        raise NotImplementedError

    def shape(self, length: int) -> tuple[int, int]:
        """Rows and columns of a number of tokens.

        Raises:
          ReslabError: If the grid has another number of places.
        """
        if not self.grid:
            rows = next(n for n in range(math.isqrt(length), 0, -1) if not length % n)
            return rows, length // rows
        rows, columns = self.grid
        if rows * columns != length:
            raise ReslabError(
                f"{type(self).__name__}: grid",
                expected=f"as many places as there are tokens ({length})",
                got=str(self.grid),
            )
        return rows, columns

    def init_state(
        self,
        batch: int,
        length: int,
        features: int,
        shared: Collection[str] = (),
    ) -> NoReturn:
        """There is no state.

        Raises:
          ReslabError: Always.
        """
        del batch, length, features, shared
        raise ReslabError(
            f"{type(self).__name__} reads later tokens",
            expected="a causal mixer, to generate",
        )

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        positions: jax.Array | None = None,
        segments: jax.Array | None = None,
        shared: Shared | None = None,
        state: State = None,
    ) -> tuple[jax.Array, Shared, State]:
        """Mixes `x` (batch, length, embed), every token with all others.

        Args:
          x: The input.
          positions: Not used: places in the grid are.
          segments: Document of each token; one in each row.
          shared: Depth memory, passed through.
          state: Not supported.

        Returns:
          The output like `x`, the depth memory, and None.
        """
        del positions
        if state is not None:
            self.init_state(x.shape[0], x.shape[1], x.shape[2])
        y = self.mix(x, self.shape(x.shape[1]))
        if segments is not None:
            is_one = jnp.all(segments == segments[:, :1], axis=1)[:, None, None]
            if not isinstance(segments, jax.core.Tracer) and not np.all(is_one):
                raise ReslabError(
                    f"{type(self).__name__}: segments",
                    expected="one document in each row",
                    got="several",
                )
            y = jnp.where(is_one, y, jnp.nan)
        return y, dict(shared or {}), None

    def convolved(
        self, name: str, x: jax.Array, grid: tuple[int, int], taps: int, share: int = 0
    ) -> jax.Array:
        """Convolves every channel over the grid, with zeros around it.

        Args:
          name: Begins the names of its taps and its bias.
          x: Features (batch, rows * columns, heads, head_dim).
          grid: Rows and columns.
          taps: Rows and columns of taps, odd.
          share: Number of leading feature axes that share taps.

        Returns:
          The shape of `x`, in the dtype of statistics.
        """
        wide, reach = statistics_dtype(self.dtype), taps // 2
        shape, axes = x.shape[2 + share :], ("heads", "head_dim")[share:]
        init = nn.initializers.normal(1 / taps)

        def own(kind, init, lead, lead_axes):
            where = (*lead, *shape), (*lead_axes, *axes)
            made = parameter(self, f"{name}_{kind}", init, *where, self.param_dtype)
            return made.astype(wide)

        lead = (taps, taps), ("window_rows", "window_columns")
        kernel = own("taps", init, *lead)
        y = x.astype(wide).reshape(x.shape[0], *grid, *x.shape[2:])
        around = [(0, 0), (reach, reach), (reach, reach), (0, 0), (0, 0)]
        padded, y = jnp.pad(y, around), jnp.zeros_like(y)
        for i, j in np.ndindex(taps, taps):
            part = padded[:, i : i + grid[0], j : j + grid[1]]
            weight = kernel[i, j].reshape((1,) * (5 - len(shape)) + shape)
            y = y + weight * part
        bias = own("bias", nn.initializers.zeros, (), ())
        bias = bias.reshape((1,) * (5 - len(shape)) + shape)
        return (y + bias).reshape(x.shape)

    def heads_of(self, name: str, x: Any, heads: int, size: int) -> jax.Array:
        """Projects `x` to heads."""
        axes = ("embed", "heads", "head_dim")
        return self.project(name, x, (heads, size), axes, use_bias=self.use_bias)

    def into_stream(self, y: jax.Array, features: int) -> jax.Array:
        """Projects heads into the stream."""
        return self.project(
            "output",
            y.astype(self.dtype),
            features,
            ("heads", "head_dim", "embed"),
            use_bias=self.use_bias,
            scale=self.output_scale,
        )


def head_dim(name: str, features: int, heads: int) -> int:
    """Size of a head.

    Raises:
      ReslabError: If heads do not divide the width.
    """
    if features % heads:
        raise ReslabError(
            f"mixers {name!r}: heads",
            expected=f"a divisor of the width ({features})",
            got=str(heads),
        )
    return features // heads
