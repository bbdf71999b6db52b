"""No position encoding."""

import flax.linen as nn
import jax


class NoPosition(nn.Module):
    """Leaves embeddings, queries and keys as they are.

    A causal mixer still tells positions apart by what it can see.

    Reference: Kazemnejad et al., 2023, https://arxiv.org/abs/2305.19466.
    """

    def embed(self, x: jax.Array, positions: jax.Array) -> jax.Array:
        """Returns the embeddings (batch, length, embed) unchanged."""
        del positions
        return x

    def rotate(self, x: jax.Array, positions: jax.Array) -> jax.Array:
        """Returns queries or keys (batch, length, heads, head_dim) unchanged."""
        del positions
        return x

    def slopes(self, heads: int) -> jax.Array | None:
        """The fall of scores with distance (heads,): there is no fall."""
        del heads
        return None


build = NoPosition
