"""Causal multi-head attention, with its usual options."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.parameters import parameter
from reslab.core.types import Shared, State
from reslab.nn.norm import make_norm
from reslab.nn.projection import ProjectingModule
from reslab.ops.attention.api import attention


class Attention(ProjectingModule):
    """Grouped-query softmax attention over the earlier tokens of a document.

        y[t] = sum_(s <= t) softmax_s(q[t] . k[s] / sqrt(head_dim)) v[s] . W_o

    Each key-value head serves `heads / kv_heads` query heads. Queries and keys
    are normalized (if asked) before the position is applied. Softmax is taken
    in float32, projections in `dtype`; the output has `dtype`.

    With `value_residual`, the first layer leaves its values v_1 in the depth
    memory and every later layer attends to a mixture of those and its own:

        "constant":  0.5 v_1 + 0.5 v_n
        "learned":   first * v_1 + own * v_n, two scalars a layer, from 0.5

    The key-value cache holds the mixed values.

    Reference: Vaswani et al., 2017, https://arxiv.org/abs/1706.03762, Eq. 1;
    grouped queries: Ainslie et al., 2023, https://arxiv.org/abs/2305.13245;
    value residual: Zhou et al., 2024, https://arxiv.org/abs/2410.17897, Eq. 4.

    Attributes:
      heads: Number of query heads.
      kv_heads: Number of key-value heads; 0 is as many as `heads`.
      is_kv_cyclic: Whether query head i reads key-value head i mod kv_heads, so that
        it stays the same when heads are added behind, instead of i // (heads /
        kv_heads).
      head_dim: Size of a head; 0 is features / heads.
      window: Number of latest tokens visible, the own one included; 0 is all.
      qk_norm: Spec of a norm over the features of each query and key head; ""
        is none.
      qkv_norm: The same for value heads too; it takes the place of `qk_norm`.
      softcap: Bound of the logits, softcap * tanh(logits / softcap); 0 is none.
      value_residual: "", "constant" or "learned".
      use_bias: Whether the projections have biases.
      position: Position encoding.
      linear: What a projection is.
      implementation: Passed to `reslab.ops.attention`.
      init_std: Initial standard deviation of the projections; 0 is by fan in.
      output_scale: Factor on that of the output projection.
      dtype: Compute dtype.
      param_dtype: Dtype in which parameters are stored.

    Raises:
      ReslabError: If heads do not divide the width, or kv_heads the heads.
    """

    heads: int = 4
    kv_heads: int = 0
    is_kv_cyclic: bool = False
    head_dim: int = 0
    window: int = 0
    qk_norm: str = ""
    qkv_norm: registry.Spec = ""
    softcap: float = 0.0
    value_residual: str = ""
    use_bias: bool = False
    position: registry.Spec = "none"
    is_causal: bool = True
    implementation: str = "auto"

    @property
    def writes_shared(self) -> bool:
        """Whether the first layer leaves its values for the others."""
        return bool(self.value_residual)

    def sizes(self, features: int) -> tuple[int, int, int]:
        """Query heads, key-value heads and head size at a given width.

        Raises:
          ReslabError: If one does not divide the other.
        """
        heads, kv_heads = self.heads, self.kv_heads or self.heads
        if heads < 1 or kv_heads < 1 or heads % kv_heads:
            raise ReslabError(
                "mixers 'attention': kv_heads",
                expected=f"a divisor of heads ({heads})",
                got=str(kv_heads),
            )
        if self.head_dim < 0 or (not self.head_dim and features % heads):
            raise ReslabError(
                "mixers 'attention': heads",
                expected=f"a divisor of the width ({features})",
                got=str(heads),
                hint="give head_dim, or another number of heads",
            )
        if self.value_residual not in ("", "constant", "learned"):
            raise ReslabError(
                "mixers 'attention': value_residual",
                expected="'', 'constant' or 'learned'",
                got=repr(self.value_residual),
            )
        return heads, kv_heads, self.head_dim or features // heads

    def init_state(self, batch: int, length: int, features: int) -> State:
        """An empty key-value cache for `length` tokens."""
        _, kv_heads, head_dim = self.sizes(features)
        empty = jnp.zeros((batch, length, kv_heads, head_dim), self.dtype)
        return {"key": empty, "value": empty, "length": jnp.zeros((), jnp.int32)}

    def mixing_flops(self, length: int, features: int) -> int:
        """Scores and weighted values over all `length` keys, per token."""
        heads, _, head_dim = self.sizes(features)
        return 4 * length * heads * head_dim

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
          segments: Document of each token; tokens see only their own document.
          shared: Depth memory; holds "values" after the first layer.
          state: Key-value cache to continue from.

        Returns:
          The output like `x`, the depth memory, and the new cache.
        """
        heads, kv_heads, head_dim = self.sizes(x.shape[-1])
        shared = dict(shared or {})

        def heads_of(name, count, scale=1.0):
            axes = ("embed", "heads", "head_dim")
            size = (count, head_dim)
            return self.project(
                name, x, size, axes, use_bias=self.use_bias, scale=scale
            )

        query, key = heads_of("query", heads), heads_of("key", kv_heads)
        value = heads_of("value", kv_heads, self.inner_scale)

        def normalize(name, h):
            return make_norm(
                self.qkv_norm or self.qk_norm,
                logical_axis="head_dim",
                param_dtype=self.param_dtype,
                name=name,
            )(h)

        if self.qkv_norm or self.qk_norm:
            query, key = normalize("query_norm", query), normalize("key_norm", key)
        if self.qkv_norm:
            value = normalize("value_norm", value)
        if self.value_residual:
            if "values" in shared:
                value = self._mix_values(shared["values"], value)
            else:
                shared["values"] = value
        position = registry.make("positions", self.position, parent=None)
        query = position.rotate(query, positions)
        key = position.rotate(key, positions)

        offset = 0
        if state is not None:
            offset = state["length"]
            start = (0, offset, 0, 0)
            key = jax.lax.dynamic_update_slice(state["key"], key, start)
            value = jax.lax.dynamic_update_slice(state["value"], value, start)
            state = {"key": key, "value": value, "length": offset + x.shape[1]}
        if self.is_kv_cyclic:
            query = _swap_groups(query, heads // kv_heads)
        y = attention(
            query,
            key,
            value,
            segments=segments,
            query_offset=offset,
            is_causal=self.is_causal,
            window=self.window or None,
            softcap=self.softcap or None,
            # Kernels have no form for a cache, nor for the short input of `init`.
            implementation="auto"
            if state is not None or self.is_initializing()
            else self.implementation,
        )
        if self.is_kv_cyclic:
            y = _swap_groups(y, kv_heads)
        joined = self.normalize_inner(y.reshape(*x.shape[:-1], -1), "heads")
        y = self.project(
            "output",
            joined.reshape(y.shape),
            x.shape[-1],
            ("heads", "head_dim", "embed"),
            use_bias=self.use_bias,
            scale=self.output_scale,
        )
        return y, shared, state

    def _mix_values(self, first: jax.Array, own: jax.Array) -> jax.Array:
        if self.value_residual == "constant":
            return 0.5 * first + 0.5 * own

        def scalar(name):
            half = nn.initializers.constant(0.5)
            return parameter(self, name, half, (), (), self.param_dtype).astype(
                own.dtype
            )

        return scalar("first_scale") * first + scalar("own_scale") * own


def _swap_groups(x: jax.Array, groups: int) -> jax.Array:
    """Reorders heads (batch, length, groups * size, head_dim) to size by groups."""
    split = x.reshape(*x.shape[:2], groups, -1, x.shape[-1])
    return jnp.swapaxes(split, 2, 3).reshape(x.shape)


build = Attention
