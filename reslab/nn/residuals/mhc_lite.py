"""mHC-lite: hyper-connections mixed by averages of permutations (Yang & Gao, 2026)."""

import itertools
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from reslab.core.bounds import Bounds
from reslab.nn.residuals._manifold import ManifoldConnections

# 7 streams have 5,040 logits per token.
_STREAMS = Bounds(least=1, most=7)


class ManifoldHyperConnectionsLite(ManifoldConnections):
    """Hyper-connections whose streams are mixed by an average of permutations.

        v     = H / sqrt(mean of H**2 over all streams and features + epsilon)
        a[i]  = a_scale * (v . a_projection)[i] + a[i]    for a in read, write, mix
        h0    = sum_s sigmoid(read[s]) H[s]
        M     = sum_r softmax(mix)[r] P[r]    over all n! permutations P
        H'[t] = sum_s M[t, s] H[s] + 2 sigmoid(write[t]) f(h0)

    Every doubly stochastic matrix is such an average, so rows and columns sum to one
    exactly, without an iteration; but n! weights are many unless n is small. Weights
    depend on the token and are float32. `mix` starts at 0 for the identity and -8
    for the other permutations; everything else is as in `mhc`.

    Reference: Yang & Gao, 2026, https://arxiv.org/abs/2601.05732. Tested against the
    authors' code, whose norm divides by the length itself (`epsilon=0` here) and has
    a gain, which the projections here contain.

    Attributes:
      streams: Number of streams n; they have n! permutations.
      (and those of `ManifoldConnections`)

    Raises:
      ReslabError: If `streams` is below 1 or above 7.
    """

    streams: Annotated[int, _STREAMS] = 4

    def permutations(self) -> np.ndarray:
        """Which stream each stream becomes, (permutations, streams)."""
        return np.asarray(list(itertools.permutations(range(self.streams))))

    def first_mix(self, dtype) -> jax.Array:
        """Nearly the identity, which is the first permutation."""
        return jnp.full(len(self.permutations()), -8, dtype).at[0].set(0)

    def mixture(self, logits: jax.Array) -> jax.Array:
        """The average of permutations, weighted by the softmax of logits."""
        becomes = self.permutations()
        is_moved = becomes[:, None, :] == np.arange(self.streams)[:, None]
        weights = jax.nn.softmax(logits, axis=0)
        return jnp.tensordot(
            jnp.asarray(is_moved, weights.dtype).transpose(1, 2, 0), weights, axes=1
        )


build = ManifoldHyperConnectionsLite
