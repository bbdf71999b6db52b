"""Rank of the attention maps."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from reslab.observe.probes._view import CannotAnswer, Quantity, View


class AttentionRankProbe:
    """The mean rank of a layer's attention maps, without their diagonal.

        rank_l = mean over rows and heads of rank(map - diag(map))

    A layer of a low rank mixes little; it is one to choose tokens in: `reslab transform
    RUN "to_mod(layers=...)"`. Softmax and singular values are in float32. The released
    models convert all layers but the first three and the last.

    Reference: Luo et al., 2024, https://arxiv.org/abs/2410.13859, Section 3.2, and its
    code.
    """

    quantities: ClassVar[Mapping[str, Quantity]] = {
        "rank": Quantity("rank of the attention maps", "layer")
    }

    def __call__(self, view: View) -> dict[str, jax.Array]:
        """Takes the maps of all layers of attention.

        Raises:
          CannotAnswer: If no layer has any.
        """
        maps = view.recorded("attention_maps")
        if maps is None:
            raise CannotAnswer("no layer of this model has attention maps")
        return {"rank": jax.lax.map(mean_rank, maps)}


def mean_rank(maps: jax.Array) -> jax.Array:
    """The mean rank of square maps (..., length, length), diagonals set to zero."""
    wide = maps.astype(jnp.promote_types(maps.dtype, jnp.float32))
    own = jnp.eye(maps.shape[-1], dtype=bool)
    off = jnp.where(own.reshape((1,) * (wide.ndim - 2) + own.shape), 0, wide)
    return jnp.mean(jnp.linalg.matrix_rank(off).astype(jnp.float32))


def lowest(ranks: Sequence[float], count: int) -> tuple[int, ...]:
    """Numbers of the layers of the lowest ranks, in order of depth.

    Args:
      ranks: Rank of each layer.
      count: Number of layers to choose.

    >>> lowest([5.0, 2.0, 4.0, 1.0], 2)
    (1, 3)
    """
    chosen = np.argsort(np.asarray(ranks), kind="stable")[:count]
    return tuple(sorted(int(layer) for layer in chosen))


build = AttentionRankProbe
