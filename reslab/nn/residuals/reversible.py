"""The reversible residual: two streams that take turns (Gomez et al., 2017)."""

from typing import ClassVar

import flax.linen as nn
import jax

from reslab.core.types import Branch
from reslab.nn.base.coupling import Coupled


class Reversible(nn.Module):
    """Keeps two streams; each sublayer reads one and writes to the other.

        (a, b) = (x, x);     (a, b) <- (b, a + f(b));     x = (a + b) / 2

    Over two sublayers, y_1 = x_1 + f(x_2) and y_2 = x_2 + g(y_1): every step can be
    undone, which the block `reversible` uses to keep no activations. With another
    block it is the same function, at the usual price. The streams are float32
    whatever the dtype of the embeddings.

    Reference: Gomez et al., 2017, https://arxiv.org/abs/1707.04585, Section 3; both
    streams start as the embedding as in Kitaev et al., 2020,
    https://arxiv.org/abs/2001.04451, Section 3. There is no golden file of the
    authors' code.
    """

    reduces_to_plain_at_init: ClassVar[bool] = False

    def widen(self, x: jax.Array) -> Coupled:
        """Starts both streams with the embeddings."""
        return Coupled.start(x)

    def __call__(
        self, stream: Coupled, branch: Branch, *, site: int | jax.Array
    ) -> Coupled:
        """Reads the one, writes to the other, whatever the site."""
        del site
        return stream.write(branch(stream.read()))

    def narrow(self, stream: Coupled) -> jax.Array:
        """The mean of both."""
        return stream.mean()


build = Reversible
