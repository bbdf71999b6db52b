"""Experts of one layer that the layers after it choose among as well."""

from collections.abc import Collection
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.bounds import Whole, bounded
from reslab.core.errors import ReslabError
from reslab.core.model_state import BATCH_STATS, UPDATES
from reslab.core.randomness import training_key
from reslab.core.types import Shared
from reslab.nn.ffns._kernels import Kernels
from reslab.nn.ffns.experts import Experts

POOL = "expert_pool"


@bounded
class ReusedExperts(Experts):
    """Experts that neighbouring layers share; each has a router of its own.

    The first layer of a group has the experts of all and leaves them in the depth
    memory; the others have a router over them. Groups of r layers are a tuple of r
    specs, such as

        model.ffn = ("reused(experts=16, is_first=True)", "reused(experts=16)")

    where two layers share the 16 experts of two layers of 8. Without `is_first` all
    layers are one group.

    While training begins, a layer may choose among fewer: at step t among

        n(t) = first + (experts - first) (t - begin) / (end - begin),    rounded down

    from `begin` to `end`, drawn in each step, the same for all tokens.

    Reference: Tan et al., 2025, https://arxiv.org/abs/2510.17483, Section 3. No code
    of the authors was found. Their printed formula of the groups is read as
    consecutive layers, and all experts are drawn alike, a layer's own too.

    Attributes:
      is_first: Whether the layer begins a group.
      first_candidates: Experts to choose among at first; 0 is all, always.
      grows_from: Step at which they begin to become more.
      grows_until: Step from which they are all.
      (and those of `Experts`)

    Raises:
      ReslabError: If the experts of a layer before are others in number or size, the
        first layer that is applied is not the one that has them, fewer than `chosen`
        may be chosen at first, the growth ends before it begins, or as for `Experts`.
    """

    is_first: bool = False
    first_candidates: Whole = 0
    grows_from: Whole = 0
    grows_until: Whole = 0
    is_renormalized: bool = False

    writes_shared: ClassVar[Collection[str]] = (POOL,)

    @property
    def renews_shared(self) -> Collection[str]:
        """Experts of a new group take the place of the last one's."""
        return self.writes_shared if self.is_first else ()

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        mask: jax.Array | None = None,
        shared: Shared | None = None,
    ) -> jax.Array | tuple[jax.Array, Shared]:
        """Maps (batch, length, embed) to the same shape.

        Args:
          x: The input.
          mask: Which tokens are in a document (batch, length); None is all.
          shared: Depth memory with the experts; None outside of a model, where the
            layer has its own.

        Returns:
          The answers, and the entries for the depth memory if there is one.
        """
        self._check()
        self._check_growth()
        found = None if self.is_first or shared is None else shared.get(POOL)
        pool = self._own(x) if found is None else self._checked(found, x.shape[-1])
        y = self.ask(x, self.route(x), mask, pool)
        return y if shared is None else (y, {POOL: pool})

    def _own(self, x: jax.Array) -> Kernels:
        if not self.is_initializing() and not self.has_variable("params", "gate"):
            raise ReslabError(
                "ffns 'reused': the experts of a group",
                expected="layers that begin with the one that owns them",
                got="a path without it",
            )
        return self.kernels(x)

    def _checked(self, pool: Kernels, features: int) -> Kernels:
        wanted = self.experts, self.latent or features, self._hidden(features)
        if pool.gate.shape != wanted:
            raise ReslabError(
                "ffns 'reused': experts of a layer before",
                expected="{} of {} x {}".format(*wanted),
                got="{} of {} x {}".format(*pool.gate.shape),
                hint="the same sizes in all layers of a group",
            )
        return pool

    def _check_growth(self) -> None:
        first = self.first_candidates
        if first and not self.chosen <= first <= self.experts:
            raise ReslabError(
                "ffns 'reused': first_candidates",
                expected=f"{self.chosen} to {self.experts}, from the chosen experts to "
                "all",
                got=str(first),
            )
        if self.grows_until < self.grows_from:
            raise ReslabError(
                "ffns 'reused': grows_until",
                expected=f"at least {self.grows_from}, where the growth begins",
                got=str(self.grows_until),
            )

    def candidates(self, scores: jax.Array) -> jax.Array:
        """Sets the scores of experts to 0 that are not among this step's."""
        if not self.first_candidates:
            return scores
        steps = self.variable(BATCH_STATS, UPDATES, lambda: jnp.zeros((), jnp.int32))
        key = training_key(self)
        if self.is_mutable_collection(BATCH_STATS) and not self.is_initializing():
            step, steps.value = steps.value, steps.value + 1
            if key is not None:
                place = jax.random.permutation(key, self.experts)
                is_candidate = (place < self.number(step)).astype(scores.dtype)
                scores = scores * is_candidate[None, None]
        return scores

    def number(self, step: jax.Array) -> jax.Array:
        """Number of experts to choose among at a step."""
        first, more = self.first_candidates, self.experts - self.first_candidates
        length = max(self.grows_until - self.grows_from, 1)
        past = jnp.clip(step - self.grows_from, 0, length)
        # In integers: a quotient of floats may fall below a whole number.
        return first + more * past // length


build = ReusedExperts
