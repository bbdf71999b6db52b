"""Statistics of norms over groups of channels."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.lax import Precision

from reslab.core.bounds import Count, Epsilon, bounded
from reslab.core.errors import ReslabError
from reslab.nn.norms._features import AffineNorm


@bounded
class GroupedNorm(AffineNorm):
    """Base of norms whose statistics are those of a group of channels.

    Groups are contiguous. A group is taken of one token, or, for images, of all
    positions of one sample; over the positions of a causal model that would show
    a token those behind it.

    Attributes:
      groups: Number of groups, a divisor of the number of channels.
      is_spatial: Whether statistics also run over the axes between batch and
        channels.
      epsilon: Added to the variance before the root.
      (and those of `AffineNorm`)
    """

    groups: Count = 4
    is_spatial: bool = False
    epsilon: Epsilon = 1e-5

    def moments(self, h: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and biased variance of each channel's group.

        Args:
          h: Features (batch, ..., channels).

        Returns:
          Both, of the rank of `h`, to be broadcast over what was averaged.

        Raises:
          ReslabError: If the groups do not divide the channels, or if a group
            is a single number, which has no variance.
        """
        channels = h.shape[-1]
        if channels % self.groups:
            raise ReslabError(
                "norms: groups",
                expected=f"a divisor of the {channels} channels",
                got=f"{self.groups}",
            )
        size = channels // self.groups
        positions = tuple(range(1, h.ndim - 1)) if self.is_spatial else ()
        if size * math.prod(h.shape[axis] for axis in positions) < 2:
            raise ReslabError(
                "norms: groups",
                expected="at least two numbers in a group",
                got=f"{self.groups} groups of {channels} channels",
                hint="fewer groups, or is_spatial=True for images",
            )
        group = jnp.arange(channels, dtype=jnp.int32) // size
        exact = functools.partial(jnp.einsum, precision=Precision.HIGHEST)
        member = jax.nn.one_hot(group, self.groups, dtype=h.dtype)
        share = member / size

        def average(v):
            # A matrix product, since a reshape would change the layout on a TPU.
            v = jnp.mean(v, positions, keepdims=True)
            return exact("...g,cg->...c", exact("...c,cg->...g", v, share), member)

        mean = average(h)
        return mean, average(jnp.square(h - mean))
