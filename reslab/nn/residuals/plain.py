"""The plain residual connection (He et al., 2015)."""

from typing import ClassVar

import flax.linen as nn
import jax

from reslab.core.types import Branch


class Plain(nn.Module):
    """Adds every sublayer's output to one stream.

        x = x + f(x)

    Reference: He et al., 2015, https://arxiv.org/abs/1512.03385, Eq. 1.
    """

    reduces_to_plain_at_init: ClassVar[bool] = True

    def widen(self, x: jax.Array) -> jax.Array:
        """The embeddings are the stream."""
        return x

    def __call__(
        self, stream: jax.Array, branch: Branch, *, site: int | jax.Array
    ) -> jax.Array:
        """Returns `stream + branch(stream)`, whatever the site."""
        del site
        return stream + branch(stream)

    def narrow(self, stream: jax.Array) -> jax.Array:
        """The stream is the features."""
        return stream


build = Plain
