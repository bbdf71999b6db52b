"""Stochastic depth: branches dropped at random while training (Huang et al., 2016)."""

import jax
import jax.numpy as jnp

from reslab.core.bounds import Momentum, bounded
from reslab.core.precision import statistics_dtype
from reslab.core.randomness import training_key
from reslab.core.types import Branch
from reslab.nn.base import sites
from reslab.nn.residuals._single import SingleStream


@bounded
class StochasticDepth(SingleStream):
    """Drops the branches of whole sequences at random, the deeper the more often.

        training:    x = x + keep / p * f(x),    keep ~ Bernoulli(p)
        evaluation:  x = x + f(x)

    At site s of S, counted from 1, p = 1 - rate * s / S. Each row of a batch draws
    for itself. Dividing by p while training, where the paper multiplies by p when
    evaluating, leaves evaluation as it would be without; the expectation of the
    stream is the same. The model draws only where it is given a key (see
    `reslab.core.randomness`).

    Reference: Huang et al., 2016, https://arxiv.org/abs/1603.09382, Eq. 2, 4 and 5.
    Tested against the equations; no output of the authors' code.

    Attributes:
      rate: Probability of dropping the last branch, at least 0 and below 1.
      depth: Number of layers applied.
      sites: Where their sublayers begin.

    Raises:
      ReslabError: If `rate` is out of range.
    """

    rate: Momentum = 0.1
    depth: int = 1
    sites: tuple[int, ...] = ()

    # Without a key, as at initialization, nothing is dropped.
    reduces_to_plain_at_init = True

    def __call__(
        self, stream: jax.Array, branch: Branch, *, site: int | jax.Array
    ) -> jax.Array:
        """Returns `stream` plus the kept rows of `branch(stream)`."""
        key = training_key(self)
        output = branch(stream)
        if key is None or not self.rate:
            return stream + output
        dtype = statistics_dtype(stream.dtype)
        share = (jnp.asarray(site, dtype) + 1) / sites.count(self.sites, self.depth)
        survival = 1 - self.rate * share
        rows = (stream.shape[0], *(1,) * (stream.ndim - 1))
        is_kept = jax.random.bernoulli(key, survival, rows)
        kept = jnp.where(is_kept, output.astype(dtype) / survival, 0)
        return (stream.astype(dtype) + kept).astype(stream.dtype)


build = StochasticDepth
