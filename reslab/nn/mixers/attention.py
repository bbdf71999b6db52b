"""Causal multi-head attention, with its usual options."""

from collections.abc import Callable, Collection
from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core import registry
from reslab.core.bounds import Bounds, Momentum, NonNegative, Whole, bounded
from reslab.core.errors import ReslabError
from reslab.core.randomness import training_key
from reslab.core.taps import editable
from reslab.core.types import Inputs, Shared, State
from reslab.nn.base import ragged
from reslab.nn.base.heads import HeadsModule, slopes_of
from reslab.ops.attention.api import attention

_WINDOW = Bounds(least=0, words="at least 1, or 0 for all tokens")


@bounded
class Attention(HeadsModule):
    """Grouped-query softmax attention over the earlier tokens of a document.

        y[t] = sum_(s <= t) softmax_s(q[t] . k[s] / sqrt(head_dim)) v[s] . W_o

    Each key-value head serves `heads / kv_heads` query heads. Queries and keys
    are normalized (if asked) before the position is applied, unless told otherwise.
    Softmax is taken in float32, projections in `dtype`; the output has `dtype`. With an
    output gate, y is multiplied by sigmoid(x . W_g) before W_o, feature by feature.

    A `value_path` decides what the keys and values of a layer owe to those of earlier
    ones: ResFormer's mixture with the first layer's values, another layer's keys and
    values in place of the own, ... (`reslab list value_paths`).

    With a `window`, the cache holds no more than the tokens that will be seen again:
    in a pattern of layers, one of short windows and one of all tokens costs little
    more than the latter alone.

    Reference: Vaswani et al., 2017, https://arxiv.org/abs/1706.03762, Eq. 1;
    grouped queries: Ainslie et al., 2023, https://arxiv.org/abs/2305.13245;
    windows: Beltagy et al., 2020, https://arxiv.org/abs/2004.05150, Section 3.1;
    output gate: Qiu et al., 2025, https://arxiv.org/abs/2505.06708, Section 2.2.

    Attributes:
      heads: Number of query heads.
      kv_heads: Number of key-value heads; 0 means `heads`.
      is_kv_cyclic: Whether query head i reads key-value head i mod kv_heads, so that
        it stays the same when heads are added behind, instead of i // (heads /
        kv_heads).
      head_dim: Size of a head; 0 is features / heads.
      window: Number of latest tokens visible, the own one included; 0 is all.
      group: Size of groups of neighbouring tokens within which later tokens are
        visible too; 0 hides them.
      qk_norm: Spec of a norm over the features of each query and key head; ""
        disables it.
      qkv_norm: The same for value heads too; it takes the place of `qk_norm`.
      qk_norm_axis: Features that `qk_norm` is over: those of each "head", with one gain
        for all heads, or those of all heads together, the "width" of the projection.
      is_qk_norm_last: Whether queries and keys are normalized after the position is
        applied.
      score_scale: Factor on the scores; 0 is 1/sqrt(head_dim).
      softcap: Bound of the logits, softcap * tanh(logits / softcap); 0 disables it.
      use_output_gate: Whether a sigmoid of the input gates what the heads return.
      value_path: What keys and values owe to earlier layers.
      attention_dropout: Rate at which entries of the softmax are dropped during
        training; kernels have no form for it, so scores are then held in memory.
      use_bias: Whether the projections have biases.
      use_output_bias: Whether the output projection has one in any case.
      position: Position encoding.
      depth: Number of layers applied.
      linear: What a projection is.
      implementation: Passed to `reslab.ops.attention`.
      init_std: Initial standard deviation of the projections; 0 is by fan in.
      output_scale: The same factor for the output projection.
      dtype: Compute dtype.
      param_dtype: Dtype in which parameters are stored.

    Raises:
      ReslabError: If heads do not divide the width, or kv_heads the heads, or the
        window is negative.
    """

    kv_heads: Whole = 0
    is_kv_cyclic: bool = False
    window: Annotated[int, _WINDOW] = 0
    group: Whole = 0
    softcap: NonNegative = 0.0
    use_output_gate: bool = False
    value_path: registry.Spec = "none"
    attention_dropout: Momentum = 0.0
    is_causal: bool = True
    depth: int = 1
    implementation: str = "auto"

    takes_inputs: ClassVar[bool] = True
    passes_padding: ClassVar[bool] = True

    @property
    def keeps_every_token(self) -> bool:
        """Returns whether its state is a cache with a place for each token."""
        return not self.window

    def _path(self, make: Callable[..., Any] = registry.unbound, **keywords) -> Any:
        return make(
            "value_paths",
            self.value_path,
            kv_heads=self.kv_heads or self.heads,
            use_bias=self.use_bias,
            window=self.window,
            depth=self.depth,
            linear=self.linear,
            init_std=self.init_std,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            **keywords,
        )

    @property
    def writes_shared(self) -> Collection[str]:
        """Names the entries that a layer may write to the depth memory."""
        return self._path().leaves

    @property
    def renews_shared(self) -> Collection[str]:
        """Names the entries that it overwrites where they exist."""
        return self._path().renews

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
        return heads, kv_heads, self.head_dim or features // heads

    def init_state(
        self,
        batch: int,
        length: int,
        features: int,
        shared: Collection[str] = (),
    ) -> State:
        """An empty key-value cache, of `length` tokens or of all that a window needs.

        A layer that reads other keys or values than its own keeps none.
        """
        _, kv_heads, head_dim = self.sizes(features)
        if self.window:
            length = min(length, self.window - 1)
        empty = jnp.zeros((batch, length, kv_heads, head_dim), self.dtype)
        cached = self._path().keeps(shared)
        state = dict.fromkeys(cached, empty)
        return {**state, "length": jnp.zeros((batch,), jnp.int32)}

    def mixing_flops(self, length: int, features: int) -> int:
        """Scores and weighted values over all `length` keys, per token."""
        heads, _, head_dim = self.sizes(features)
        return 4 * length * heads * head_dim

    @nn.compact
    def __call__(
        self,
        x: jax.Array | Inputs,
        *,
        positions: jax.Array,
        segments: jax.Array | None = None,
        shared: Shared | None = None,
        state: State = None,
    ) -> tuple[jax.Array, Shared, State]:
        """Attends within `x` (batch, length, embed), or to a cache and `x`.

        Args:
          x: The input, or one each for queries, keys and values.
          positions: Position of each token in its document (batch, length).
          segments: Document of each token; tokens see only their own document. With
            a state, 0 marks padding, which is passed by; rows may differ in length.
          shared: Depth memory.
          state: Key-value cache to continue from.

        Returns:
          The output like `x`, the depth memory, and the new cache.
        """
        inputs = x if isinstance(x, Inputs) else Inputs(x, x, x)
        x = inputs.query
        heads, kv_heads, head_dim = self.sizes(x.shape[-1])
        size, new_state = (kv_heads, head_dim), {}

        is_real = None if state is None else ragged.real_tokens(segments)
        rank = ragged.ranks(is_real, *x.shape[:2])

        def keep(name, new):
            if state is None:
                return new
            if self._is_rolling(state[name].shape[1]):
                seen = ragged.append(state[name], new, is_real)
                new_state[name] = seen[:, new.shape[1] :]
                return seen
            place = state["length"][:, None] + rank
            if is_real is not None:
                # Past the end, so that nothing is written.
                place = jnp.where(is_real, place, state[name].shape[1])
            row = jnp.arange(new.shape[0])[:, None]
            new_state[name] = state[name].at[row, place].set(new, mode="drop")
            return new_state[name]

        query = self.rotated("query", x, (heads, head_dim), positions)
        key, value, shared = self._path(registry.make, name="value_path")(
            x,
            key=lambda: self.rotated("key", inputs.key, size, positions),
            value=lambda: self.values(inputs.value, size),
            keep=keep,
            shared=dict(shared or {}),
        )
        place: dict[str, Any] = {"segments": segments}
        if state is not None:
            length, count = state["length"], rank[:, -1] + 1
            place = {"query_index": length[:, None] + rank}
            slots = key.shape[1] - x.shape[1]
            if self._is_rolling(slots):
                # Padding, then the latest tokens, then the new ones.
                padding = x.shape[1] - count
                place["query_index"] = (slots + padding)[:, None] + rank
                place["first_key"] = padding + jnp.maximum(slots - length, 0)
            state = {**new_state, "length": length + count}
        if self.group:
            index = place.get("query_index", rank)
            place["query_index"] = (index // self.group + 1) * self.group - 1
        if self.is_kv_cyclic:
            query = _swap_groups(query, heads // kv_heads)
        y = self.attend(
            attention,
            query,
            key,
            value,
            **place,
            is_causal=self.is_causal,
            window=self.window or None,
            softcap=self.softcap or None,
            scale=self.score_scale or None,
            slopes=slopes_of(registry.unbound("positions", self.position), heads),
            dropout=self.attention_dropout,
            dropout_key=training_key(self) if self.attention_dropout else None,
            # Kernels support neither caches nor the short input of `init`.
            implementation="auto"
            if state is not None or self.is_initializing()
            else self.implementation,
        )
        if self.is_kv_cyclic:
            y = _swap_groups(y, kv_heads)
        if self.use_output_gate:
            y = y * jax.nn.sigmoid(self.to_heads("gate", x, (heads, head_dim)))
        y = editable(self, "heads", y)
        return self.from_heads(y, x.shape[-1]), shared, state

    def _is_rolling(self, slots: int) -> bool:
        """Returns whether a cache of this length drops tokens outside the window."""
        return self.window > 0 and slots == self.window - 1


def _swap_groups(x: jax.Array, groups: int) -> jax.Array:
    """Reorders heads (batch, length, groups * size, head_dim) to size by groups."""
    split = x.reshape(*x.shape[:2], groups, -1, x.shape[-1])
    return jnp.swapaxes(split, 2, 3).reshape(x.shape)


build = Attention
