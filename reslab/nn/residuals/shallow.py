"""Shallow residuals: a stack cut off after its first order in the branches."""

from typing import Annotated, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.bounds import Bounds, bounded
from reslab.core.platform import computed_once
from reslab.core.types import Branch

Streams = tuple[jax.Array, jax.Array]


@bounded
class ShallowResidual(nn.Module):
    """Applies all sublayers of a group to the input of the group.

        x = x + sum_(i in group) f_i(x)

    This keeps the terms of (1 + f_n) ... (1 + f_1) x that contain at most one branch.
    With groups of one sublayer this is the usual stack; with one group for the whole
    model it is a single wide layer. The sublayers of a group are independent, but are
    still computed in turn, not as one wide product.

    Reference: Bermeitinger et al., 2023, https://arxiv.org/abs/2309.08414 (known from
    its abstract; tried there on small convolutional networks). Property only, no
    authors' code.

    Attributes:
      group: Sublayers in a group; 0 is all.

    Raises:
      ReslabError: If `group` is negative.
    """

    group: Annotated[
        int, Bounds(least=0, words="at least 1, or 0 for all sublayers")
    ] = 0

    reduces_to_plain_at_init: ClassVar[bool] = False

    def widen(self, x: jax.Array) -> Streams:
        """Returns the group's input and the sum so far."""
        return x, x

    def __call__(
        self, stream: Streams, branch: Branch, *, site: int | jax.Array
    ) -> Streams:
        """Applies `branch` to what the group reads, adds to the sum."""
        start, total = stream
        if self.group:
            start = jnp.where(jnp.asarray(site) % self.group == 0, total, start)
        return start, computed_once(total + branch(start))

    def narrow(self, stream: Streams) -> jax.Array:
        """The sum."""
        return stream[1]


build = ShallowResidual
