"""Multi-head latent attention: keys and values from one narrow vector per token."""

from collections.abc import Collection
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core import registry, surroundings
from reslab.core.bounds import Count, Whole, bounded
from reslab.core.errors import ReslabError
from reslab.core.parameters import parameter
from reslab.core.taps import editable
from reslab.core.types import Shared, State
from reslab.nn.base import ragged
from reslab.nn.base.heads import slopes_of
from reslab.nn.base.norm import make_norm
from reslab.nn.base.projection import ProjectingModule
from reslab.ops.attention.api import attention


@bounded
class LatentAttention(ProjectingModule):
    """Attends by keys and values that are expanded from a shared latent vector.

        [c, r]   = W_c x,   c = RMSNorm(c),   r = rotated(r)
        q        = W_q RMSNorm(W_d x)                       (or W_q x)
        k[h], v[h] = [K_h c, r], V_h c
        y        = (softmax(q . k / sqrt(head_dim + rope_dim)) v) . W_o

    Of each query the last `rope_dim` features are rotated, and meet r, which all heads
    share. The cache holds c and r alone. With a cache, K_h is applied to the query
    instead, and V_h to the mean of the latents: keys and values are never expanded.

    Reference: DeepSeek-AI, 2024, https://arxiv.org/abs/2405.04434, Section 2.1;
    without positions and with a gate: Kimi Team, 2025,
    https://arxiv.org/abs/2510.26692.

    Attributes:
      heads: Number of heads.
      head_dim: Size of a key from the latent; 0 is features / heads.
      value_dim: Size of a value; 0 is `head_dim`.
      rope_dim: Size of the part of a key that is rotated and shared; 0 leaves it out.
        With position "none" it is not rotated.
      rank: Size of the latent vector; 0 is 4 `head_dim`.
      query_rank: Size of the latent vector of queries; 0 projects them at once.
      latent_norm: Norm of the latent vectors.
      use_output_gate: Whether a sigmoid of the input gates what the heads return.
      position: Position encoding.
      is_causal: Whether later tokens are hidden.
      implementation: Passed to `reslab.ops.attention`.
      (and those of `ProjectingModule`)

    Raises:
      ReslabError: If heads do not divide the width and head_dim is 0, or values are
        larger than keys, or more tokens are given than the cache holds.
    """

    heads: Count = 4
    head_dim: Whole = 0
    value_dim: Whole = 0
    rope_dim: Whole = 16
    rank: Whole = 0
    query_rank: Whole = 0
    latent_norm: registry.Spec = "rms"
    use_output_gate: bool = False
    position: registry.Spec = "none"
    is_causal: bool = True
    implementation: str = "auto"

    writes_shared: ClassVar[tuple[str, ...]] = ()
    passes_padding: ClassVar[bool] = True
    keeps_every_token: ClassVar[bool] = True

    def sizes(self, features: int) -> tuple[int, int, int]:
        """Sizes of a key and of a value from the latent, and of the latent.

        Raises:
          ReslabError: If there is no whole size, or values are larger than keys.
        """
        if not self.head_dim and features % self.heads:
            raise ReslabError(
                "mixers 'latent_attention': heads",
                expected=f"a divisor of the width ({features})",
                got=str(self.heads),
                hint="give head_dim, or another number of heads",
            )
        key_dim = self.head_dim or features // self.heads
        value_dim, most = self.value_dim or key_dim, key_dim + self.rope_dim
        if value_dim > most:
            raise ReslabError(
                "mixers 'latent_attention': value_dim",
                expected=f"at most head_dim + rope_dim ({most})",
                got=str(value_dim),
            )
        return key_dim, value_dim, self.rank or 4 * key_dim

    def init_state(
        self,
        batch: int,
        length: int,
        features: int,
        shared: Collection[str] = (),
    ) -> State:
        """An empty cache of `length` latent vectors."""
        del shared
        *_, rank = self.sizes(features)
        return {
            "latent": jnp.zeros((batch, length, rank + self.rope_dim), self.dtype),
            "length": jnp.zeros((batch,), jnp.int32),
        }

    def mixing_flops(self, length: int, features: int) -> int:
        """Scores and weighted values over all `length` keys, per token."""
        key_dim, value_dim, _ = self.sizes(features)
        return 2 * length * self.heads * (key_dim + self.rope_dim + value_dim)

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        positions: jax.Array,
        segments: jax.Array | None = None,
        shared: Shared | None = None,
        state: State = None,
    ) -> tuple[jax.Array, Shared, State]:
        """Attends within `x` (batch, length, embed), or to a cache and `x`.

        Args:
          x: The input.
          positions: Position of each token in its document (batch, length).
          segments: Document of each token; tokens see only their own document. With
            a state, 0 marks padding, which is passed by; rows may differ in length.
          shared: Depth memory, passed through.
          state: Cache to continue from.

        Returns:
          The output like `x`, the depth memory, and the new cache.
        """
        key_dim, value_dim, rank = self.sizes(x.shape[-1])
        position = registry.unbound("positions", self.position)
        of_heads = ("heads", "head_dim")

        query, inputs = x, "embed"
        if self.query_rank:
            query = self.project("query_down", x, self.query_rank, ("embed", None))
            query, inputs = self._norm("query_norm", query), "inner"
        size = key_dim + self.rope_dim
        query = self.project("query", query, (self.heads, size), (inputs, *of_heads))
        latent = self.project("latent", x, rank + self.rope_dim, ("embed", None))
        latent, rotated = latent[..., :rank], latent[..., rank:]
        latent = self._norm("latent_norm", latent)
        if self.rope_dim:
            rotated = position.rotate(rotated[:, :, None], positions)[:, :, 0]
            turned = position.rotate(query[..., key_dim:], positions)
            query = jnp.concatenate([query[..., :key_dim], turned], axis=-1)
        joined = jnp.concatenate([latent, rotated], axis=-1)
        key_up = self._expansion("key_up", rank, key_dim, 1.0)
        value_up = self._expansion("value_up", rank, value_dim, self.inner_scale)
        place: dict[str, Any] = {"is_causal": self.is_causal, "scale": size**-0.5}
        place["slopes"] = slopes_of(position, self.heads)
        if state is None:
            key = jnp.einsum("btr,rhn->bthn", latent, key_up)
            shape = (*key.shape[:3], self.rope_dim)
            key = jnp.concatenate(
                [key, jnp.broadcast_to(rotated[:, :, None], shape)], axis=-1
            )
            y = attention(
                query,
                key,
                jnp.einsum("btr,rhv->bthv", latent, value_up),
                segments=segments,
                # Kernels do not support the short input of `init`.
                implementation="auto"
                if self.is_initializing()
                else self.implementation,
                **place,
            )
        else:
            cache, place["query_index"], state = _appended(state, joined, segments)
            asked = jnp.einsum("bthn,rhn->bthr", query[..., :key_dim], key_up)
            asked = jnp.concatenate([asked, query[..., key_dim:]], axis=-1)
            y = attention(asked, cache, cache[..., :rank], **place)
            y = jnp.einsum("bthr,rhv->bthv", y, value_up)
        if self.use_output_gate:
            axes = ("embed", *of_heads)
            y = y * nn.sigmoid(self.project("gate", x, (self.heads, value_dim), axes))
        y = editable(self, "heads", y)
        y = self.project(
            "output", y, x.shape[-1], (*of_heads, "embed"), scale=self.output_scale
        )
        return y, dict(shared or {}), state

    def _norm(self, name, x):
        axis = surroundings.Norms(logical_axis="head_dim")
        kept = {"param_dtype": self.param_dtype, "parent": self, "name": name}
        return make_norm(self.latent_norm, **axis, **kept)(x)

    def _expansion(self, name, rank, size, scale):
        """A kernel of its own, since it is applied from both sides."""
        init = nn.initializers.normal(scale * (self.init_std or rank**-0.5))
        shape, axes = (rank, self.heads, size), ("inner", "heads", "head_dim")
        kernel = parameter(self, f"{name}_kernel", init, shape, axes, self.param_dtype)
        return kernel.astype(self.dtype)


def _appended(state, new, segments):
    """The cache as one key-value head, the index of each query in it, and the state.

    Raises:
      ReslabError: If there are more tokens than the cache holds.
    """
    slots = state["latent"].shape[1]
    if new.shape[1] > slots:
        raise ReslabError(
            "latent_attention: tokens",
            expected=f"at most {slots}, which the cache holds",
            got=str(new.shape[1]),
        )
    is_real = ragged.real_tokens(segments)
    rank = ragged.ranks(is_real, *new.shape[:2])
    index = place = state["length"][:, None] + rank
    if is_real is not None:
        # Past the end, so that nothing is written.
        place = jnp.where(is_real, place, slots)
    row = jnp.arange(new.shape[0])[:, None]
    cache = state["latent"].at[row, place].set(new, mode="drop")
    length = state["length"] + rank[:, -1] + 1
    return cache[:, :, None], index, {"latent": cache, "length": length}


build = LatentAttention
