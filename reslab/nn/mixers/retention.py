"""Retention: linear attention with a fixed decay for each head."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from reslab.core.bounds import Count, Epsilon, Positive, Whole, bounded
from reslab.core.errors import ReslabError
from reslab.core.precision import statistics_dtype
from reslab.core.taps import editable
from reslab.nn.mixers._gated_norm import gated_norm
from reslab.nn.mixers._recurrent import RecurrentMixer, Tokens
from reslab.nn.mixers._rotation import rotated
from reslab.ops.ssd.api import ssd


@bounded
class Retention(RecurrentMixer):
    """Sums earlier values, weighted by rotated products and a decay per head.

        o[t] = sum_(s <= t) decay^(t - s) (R(t) q[t] . R(s) k[s]) / sqrt(head_dim) v[s]
        y    = (RMSNorm(o) * silu(W_g x)) . W_o

    Head h has the decay 1 - 2^(-5-h); R rotates pairs of features by angles linear in
    position, of frequencies from 1 to 1/10,000. In the chunked form it is a recurrence
    on a memory (head_dim, value_dim); in the parallel form a matrix of all pairs of
    tokens. Both are the same numbers, but for the option "scores": the parallel form
    then divides by the larger of 1 and the sum of the absolute scores, which no
    recurrence knows, and the forms differ by about the `epsilon` of the norm. The
    memory and the recurrence are float32, projections `dtype`.

    Reference: Sun et al., 2023, https://arxiv.org/abs/2307.08621, Eq. 5-8 and Section
    2.1, "Retention Score Normalization".

    Attributes:
      heads: Number of heads.
      value_expansion: Size of a value over the size of a key.
      normalization: "none", or "scores": also divides by the root of the sum of decays
        and, in the parallel form, by the sum of scores.
      form: "chunked" or "parallel", where there is no state.
      epsilon: Added to the mean square of the norm.
      chunk: Tokens that training and prefill take together; 0 leaves it to the
        operation.
      (and those of `RecurrentMixer`)

    Raises:
      ReslabError: If heads do not divide the width into even sizes.
    """

    heads: Count = 4
    value_expansion: Positive = 2.0
    normalization: Literal["none", "scores"] = "none"
    form: Literal["chunked", "parallel"] = "chunked"
    epsilon: Epsilon = 1e-6
    chunk: Whole = 0

    def sizes(self, features: int) -> tuple[int, int]:
        """Sizes of a key and of a value at a given width.

        Raises:
          ReslabError: If there is no even, whole size.
        """
        key_dim, rest = divmod(features, self.heads)
        if rest or key_dim % 2:
            raise ReslabError(
                "mixers 'retention': heads",
                expected=f"a divisor of half the width ({features // 2})",
                got=str(self.heads),
            )
        return key_dim, int(key_dim * self.value_expansion)

    def empty_state(self, batch: int, features: int) -> dict[str, jax.Array]:
        """An empty memory."""
        shape = batch, self.heads, *self.sizes(features)
        return {"memory": jnp.zeros(shape, statistics_dtype(self.dtype))}

    def step_flops(self, features: int) -> int:
        """Reading the memory once per token."""
        key_dim, value_dim = self.sizes(features)
        return 2 * self.heads * key_dim * value_dim

    def mix(
        self, x: jax.Array, tokens: Tokens, state: Any
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Mixes `x`; see `RecurrentMixer.mix`."""
        key_dim, value_dim = self.sizes(x.shape[-1])
        wide = statistics_dtype(self.dtype)
        positions = tokens.positions
        if positions is None:
            if state is not None:
                raise ReslabError("retention: positions", expected="given with a state")
            positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])

        def heads_of(name, size):
            axes = ("embed", "heads", "head_dim")
            return self.project(name, x, (self.heads, size), axes)

        query = rotated(heads_of("query", key_dim).astype(wide), positions)
        key = rotated(heads_of("key", key_dim).astype(wide), positions)
        value = heads_of("value", value_dim).astype(wide)
        query = query * key_dim**-0.5
        log_decay = np.log1p(-(2.0 ** (-5.0 - np.arange(self.heads))))
        log_decay = jnp.asarray(log_decay, wide)
        # The sum of all decays from a token back to the first of its document.
        age = (positions + 1).astype(wide)[..., None] * log_decay[None, None]
        total = jnp.expm1(age) / jnp.expm1(log_decay)[None, None]
        if state is None and self.form == "parallel":
            scores = _scores(query, key, log_decay, tokens.segments)
            if self.normalization == "scores":
                scores = scores / jnp.moveaxis(jnp.sqrt(total), 2, 1)[..., None]
                size = jnp.sum(jnp.abs(scores), axis=-1, keepdims=True)
                scores = scores / jax.lax.stop_gradient(jnp.clip(size, 1, 5e4))
            y, memory = jnp.einsum("bhts,bshv->bthv", scores, value), None
        else:
            # Padding neither writes to the memory nor decays it.
            shape = (*x.shape[:2], self.heads)
            decay = jnp.broadcast_to(log_decay[None, None], shape)
            key, decay = tokens.without_padding(key, decay)
            y, memory = ssd(
                query,
                key,
                value,
                decay,
                state=None if state is None else state["memory"],
                resets=tokens.resets,
                chunk=self.chunk,
            )
            if self.normalization == "scores":
                y = y / jnp.sqrt(total)[..., None]
        spec = f"rms(use_gain=False, epsilon={self.epsilon})"
        y = gated_norm(self, y, heads_of("gate", value_dim), spec=spec)
        y = editable(self, "heads", y)
        axes = ("heads", "head_dim", "embed")
        y = self.project("output", y, x.shape[-1], axes, scale=self.output_scale)
        return y, {"memory": memory}


def _scores(query, key, log_decay, segments):
    """Decayed products of all pairs of tokens (batch, heads, length, length)."""
    row = jnp.arange(query.shape[1])
    apart = (row[:, None] - row[None]).astype(query.dtype)
    decay = jnp.exp(jnp.maximum(apart, 0)[None] * log_decay[:, None, None])
    is_seen = (apart >= 0)[None]
    if segments is not None:
        is_seen = is_seen & (segments[:, :, None] == segments[:, None])
    products = jnp.einsum("bthk,bshk->bhts", query, key)
    return jnp.where(is_seen[:, None], products * decay[None], 0)


build = Retention
