"""Queries, keys and values as heads, and the projection from heads."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from reslab.core import registry, surroundings
from reslab.core.bounds import Count, NonNegative, Whole, bounded
from reslab.core.taps import is_recorded, tap
from reslab.nn.base.norm import make_norm
from reslab.nn.base.projection import ProjectingModule


@bounded
class HeadsModule(ProjectingModule):
    """Base of parts that read queries, keys and values, and write what heads attend to.

    Attributes:
      heads: Number of query heads.
      head_dim: Size of a head; 0 is features / heads.
      qk_norm: Spec of a norm over the features of each query and key head; ""
        disables it.
      qkv_norm: The same for value heads too; it takes the place of `qk_norm`.
      qk_norm_axis: Features that `qk_norm` is over: those of each "head", with one gain
        for all heads, or those of all heads together, the "width" of the projection.
      is_qk_norm_last: Whether queries and keys are normalized after the position is
        applied.
      score_scale: Factor on the scores; 0 is 1/sqrt(head_dim).
      use_bias: Whether the projections have biases.
      use_output_bias: Whether the output projection has one in any case.
      position: Position encoding.
      (and those of `ProjectingModule`)
    """

    heads: Count = 4
    head_dim: Whole = 0
    qk_norm: str = ""
    qkv_norm: registry.Spec = ""
    qk_norm_axis: Literal["head", "width"] = "head"
    is_qk_norm_last: bool = False
    score_scale: NonNegative = 0.0
    use_bias: bool = False
    use_output_bias: bool = False
    position: registry.Spec = "none"

    def to_heads(
        self, name: str, x: jax.Array, size: tuple[int, int], scale: float = 1.0
    ) -> jax.Array:
        """Projects `x` (batch, length, embed) to heads, (heads, head_dim) of a size."""
        axes = ("embed", "heads", "head_dim")
        return self.project(name, x, size, axes, use_bias=self.use_bias, scale=scale)

    def rotated(
        self, name: str, x: jax.Array, size: tuple[int, int], positions: jax.Array
    ) -> jax.Array:
        """Projects `x` to queries or keys, with their norm and their position."""
        spec = self.qkv_norm or self.qk_norm
        axis = "head" if self.qkv_norm else self.qk_norm_axis
        position = registry.unbound("positions", self.position)
        steps: list[Callable[[jax.Array], jax.Array]] = [
            lambda h: self._normalize(spec, f"{name}_norm", h, axis),
            lambda h: position.rotate(h, positions),
        ]
        h = self.to_heads(name, x, size)
        for step in reversed(steps) if self.is_qk_norm_last else steps:
            h = step(h)
        return h

    def values(self, x: jax.Array, size: tuple[int, int]) -> jax.Array:
        """Projects `x` to values, with their norm."""
        h = self.to_heads("value", x, size, self.inner_scale)
        return self._normalize(self.qkv_norm, "value_norm", h, "head")

    def from_heads(self, y: jax.Array, features: int) -> jax.Array:
        """Projects heads (batch, length, heads, head_dim) into the stream."""
        joined = self.normalize_inner(_joined(y), "heads")
        return self.project(
            "output",
            joined.reshape(y.shape),
            features,
            ("heads", "head_dim", "embed"),
            use_bias=self.use_bias or self.use_output_bias,
            scale=self.output_scale,
        )

    def attend(
        self,
        attention: Callable[..., jax.Array],
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        **options: Any,
    ) -> jax.Array:
        """Attends, and shows the maps (batch, heads, length, length) where asked.

        Args:
          attention: The operation.
          query: Queries (batch, length, heads, head_dim).
          key: Keys of the same tokens.
          value: Values of the same tokens.
          **options: Further arguments of the operation.
        """
        if is_recorded("attention_maps") and key.shape[1] == query.shape[1]:
            # The answers of one-hot values are the weights; as wide as keys at most.
            own = jnp.eye(key.shape[1], dtype=value.dtype)[None, :, None]
            own = jnp.broadcast_to(own, (*key.shape[:3], key.shape[1]))
            plain, width = {**options, "implementation": "reference"}, key.shape[-1]
            parts = [
                attention(query, key, own[..., first : first + width], **plain)
                for first in range(0, key.shape[1], width)
            ]
            maps = jnp.concatenate(parts, axis=-1)
            tap(self, "attention_maps", jnp.swapaxes(maps, 1, 2))
        return attention(query, key, value, **options)

    def _normalize(
        self, spec: registry.Spec, name: str, h: jax.Array, axis: str
    ) -> jax.Array:
        if not spec:
            return h
        is_head = axis == "head"
        norm = make_norm(
            spec,
            **surroundings.Norms(logical_axis="head_dim" if is_head else "heads"),
            param_dtype=self.param_dtype,
            parent=self,
            name=name,
        )
        return norm(h) if is_head else norm(_joined(h)).reshape(h.shape)


def _joined(x: jax.Array) -> jax.Array:
    """Joins the heads of (batch, length, heads, head_dim)."""
    return x.reshape(*x.shape[:-2], -1)


def slopes_of(position: Any, heads: int) -> jax.Array | None:
    """The fall of scores with distance (heads,), or None without one.

    Args:
      position: A position encoding; one from outside the package may have no slopes.
      heads: Number of heads.
    """
    slopes = getattr(position, "slopes", None)
    return None if slopes is None else slopes(heads)
