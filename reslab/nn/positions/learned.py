"""Learned absolute position embedding (Gehring et al., 2017)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from reslab.core.bounds import NonNegative, Whole, bounded
from reslab.core.errors import ReslabError
from reslab.core.parameters import parameter
from reslab.nn.positions.none import NoPosition


@bounded
class LearnedPosition(NoPosition):
    """Adds a learned vector for each position to the embeddings.

        x[t] = x[t] + table[position[t]]

    A position beyond the table is refused where it is known; inside `jit`, where it is
    not, its row is NaN.

    Reference: Gehring et al., 2017, https://arxiv.org/abs/1705.03122, Section
    3.1.

    Attributes:
      max_length: Number of positions that the model needs.
      length: Number of positions in the table; 0 is `max_length`.
      embedding_std: Initial standard deviation of the table.
      param_dtype: Dtype in which the table is stored.
    """

    max_length: int = 1024
    length: Whole = 0
    embedding_std: NonNegative = 0.02
    param_dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        if self.length:
            self.max_length = self.length
        super().__post_init__()

    @nn.compact
    def embed(self, x: jax.Array, positions: jax.Array) -> jax.Array:
        """Adds the rows at `positions` (batch, length) to (batch, length, embed).

        Raises:
          ReslabError: If a position is known to be beyond the table.
        """
        if not isinstance(positions, jax.core.Tracer) and positions.size:
            known = np.asarray(
                positions
            )  # A JAX operation inside `jit` would be traced.
            least, most = int(known.min()), int(known.max())
            if least < 0 or most >= self.max_length:
                raise ReslabError(
                    "position",
                    expected=f"0 to {self.max_length - 1}, as max_length allows",
                    got=str(most if least >= 0 else least),
                )
        table = parameter(
            self,
            "embedding",
            nn.initializers.normal(self.embedding_std),
            (self.max_length, x.shape[-1]),
            (None, "embed"),
            self.param_dtype,
        )
        return x + jnp.take(table.astype(x.dtype), positions, axis=0)


build = LearnedPosition
