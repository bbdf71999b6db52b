"""SLAB's simplified linear attention: no softmax, and a convolution beside it."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from reslab.core.bounds import Count, Epsilon, bounded
from reslab.core.parameters import parameter
from reslab.core.precision import statistics_dtype
from reslab.core.taps import editable
from reslab.nn.mixers._grid import GridMixer, head_dim


@bounded
class SimplifiedLinear(GridMixer):
    """Averages values by products of non-negative queries and keys.

        q, k = relu(W_q x), relu(W_k x + place)
        y    = ((q (k^T v)) / (q . sum k + epsilon) + convolution(v)) . W_o

    The product k^T v (head_dim, head_dim) sums over all tokens, so the cost is linear
    in their number. Each place has a learned vector, zero at initialization; all heads
    share the taps of the convolution. Products are float32, projections
    `dtype`.

    Reference: Guo et al., 2024, https://arxiv.org/abs/2405.11582, Section 3.3; the
    parametrization of the authors' code.

    Attributes:
      heads: Number of heads.
      taps: Rows and columns of the taps of the convolution, odd.
      epsilon: Added to the divisor.
      (and those of `GridMixer`)

    Raises:
      ReslabError: If heads do not divide the width.
    """

    heads: Count = 4
    taps: Count = 5
    epsilon: Epsilon = 1e-6

    def mixing_flops(self, length: int, features: int) -> int:
        """The product of keys and values, what queries read of it, and the divisor."""
        del length
        size = head_dim("simplified_linear", features, self.heads)
        return 2 * self.heads * size * (2 * size + 1)

    def mix(self, x: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """Mixes `x`; see `GridMixer.mix`."""
        size = head_dim("simplified_linear", x.shape[-1], self.heads)
        wide = statistics_dtype(self.dtype)
        query, key, value = (
            self.heads_of(name, x, self.heads, size).astype(wide)
            for name in ("query", "key", "value")
        )
        place = parameter(
            self,
            "place",
            nn.initializers.zeros,
            (x.shape[1], self.heads, size),
            (None, "heads", "head_dim"),
            self.param_dtype,
        )
        query, key = nn.relu(query), nn.relu(key + place.astype(wide)[None])
        divisor = jnp.einsum("bthd,bhd->bth", query, jnp.sum(key, axis=1))
        y = jnp.einsum(
            "bthd,bhde->bthe", query, jnp.einsum("bshd,bshe->bhde", key, value)
        )
        y = y / (divisor + self.epsilon)[..., None]
        y = y + self.convolved("near", value, grid, self.taps, share=1)
        return self.into_stream(editable(self, "heads", y), x.shape[-1])


build = SimplifiedLinear
