"""Manhattan self-attention: softmax attention with a decay over the distance."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from reslab.core.bounds import Count, Positive, bounded
from reslab.core.errors import ReslabError
from reslab.core.precision import statistics_dtype
from reslab.core.taps import editable
from reslab.nn.mixers._grid import GridMixer, head_dim
from reslab.nn.mixers._rotation import rotated


@bounded
class Manhattan(GridMixer):
    """Attends over a grid, less to what is farther away.

        y = (softmax(q . k + distance log decay) v + convolution(v)) . W_o

    The distance counts rows and columns. Head h of n has the decay
    1 - 2^(-start - range h / n). "full" attends to all places at once; "axes" along
    columns of the same row first, then along rows of the same column, with the same
    queries and keys, in length^1.5 instead of length^2. Queries and keys are rotated by
    angles linear in the number of the place. Scores and softmax are float32,
    projections `dtype`.

    Reference: Fan et al., 2023, https://arxiv.org/abs/2309.11523, Eq. 4-6.

    Attributes:
      heads: Number of heads.
      form: "full" or "axes".
      start: Exponent of the strongest decay.
      range: By how much it grows over the heads.
      (and those of `GridMixer`)

    Raises:
      ReslabError: If heads do not divide the width into even sizes.
    """

    heads: Count = 4
    form: Literal["full", "axes"] = "full"
    start: Positive = 2.0
    range: Positive = 4.0

    _taps = 5

    def size(self, features: int) -> int:
        """Size of a head at a given width.

        Raises:
          ReslabError: If there is no even, whole size.
        """
        size = head_dim("manhattan", features, self.heads)
        if size % 2:
            raise ReslabError(
                "mixers 'manhattan': heads",
                expected=f"a divisor of half the width ({features // 2})",
                got=str(self.heads),
            )
        return size

    def mixing_flops(self, length: int, features: int) -> int:
        """Scores and weighted values, over all places or along both axes."""
        seen = length if self.form == "full" else sum(self.shape(length))
        return 4 * seen * self.heads * self.size(features)

    def mix(self, x: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """Mixes `x`; see `GridMixer.mix`."""
        size, wide = self.size(x.shape[-1]), statistics_dtype(self.dtype)
        place = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
        query, key, value = (
            self.heads_of(name, x, self.heads, size).astype(wide)
            for name in ("query", "key", "value")
        )
        near = self.convolved("near", value, grid, self._taps)
        query, key = rotated(query, place), rotated(key * size**-0.5, place)
        decay = np.log1p(
            -(2.0 ** -(self.start + self.range * np.arange(self.heads) / self.heads))
        )
        masks = [_distances(n)[None] * decay[:, None, None] for n in grid]
        if self.form == "full":
            rows, columns = grid
            mask = np.repeat(np.repeat(masks[0], columns, 1), columns, 2)
            mask = mask + np.tile(masks[1], (1, rows, rows))
            y = _attended(query, key, value, jnp.asarray(mask, wide))
        else:
            query, key, value = (
                a.reshape(-1, *grid, self.heads, size) for a in (query, key, value)
            )
            by_row, by_column = (jnp.asarray(mask, wide) for mask in masks)
            value = jax.vmap(_attended, (1, 1, 1, None), 1)(
                query, key, value, by_column
            )
            y = jax.vmap(_attended, (2, 2, 2, None), 2)(query, key, value, by_row)
        y = editable(self, "heads", y.reshape(near.shape) + near)
        return self.into_stream(y, x.shape[-1])


def _distances(length):
    place = np.arange(length)
    return np.abs(place[:, None] - place[None])


def _attended(query, key, value, mask):
    """Attention (batch, length, heads, size) with a mask (heads, length, length)."""
    scores = jnp.einsum("bthd,bshd->bhts", query, key) + mask[None]
    weights = jax.nn.softmax(scores, axis=-1)
    return jnp.einsum("bhts,bshd->bthd", weights, value)


build = Manhattan
