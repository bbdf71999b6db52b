"""Attention over the sources of a history, with a learned query."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.parameters import parameter
from reslab.nn.base.history import Sources
from reslab.ops.depth_attention.reference import logit


class DepthAttention(nn.Module):
    """Reads a history by softmax attention over its sources, token by token.

        a = softmax_i(w . (g * v_i / rms(v_i))),    h = sum_i a_i v_i

    The query w is a parameter, zero at first: the reading starts as the mean. Values
    are not normalized. Everything is float32 but what is returned, which has the
    dtype of the sources.

    Attributes:
      epsilon: Added to mean squares before the root.
      use_null: Whether a learned vector is one more source, zero at first.
      null_bias: Initial value of what is added to that source's logit; large, and
        nothing else is read.
      param_dtype: Dtype in which parameters are stored.
    """

    epsilon: float = 1e-6
    use_null: bool = False
    null_bias: float = 0.0
    param_dtype: Any = jnp.float32

    @nn.compact
    def _vectors(self, features: int, dtype: Any) -> tuple[jax.Array, Any, Any]:
        """The query times the gain; the null source and its bias, or None."""

        def make(name, value, shape, axes):
            init = nn.initializers.constant(value)
            args = (name, init, shape, axes, self.param_dtype)
            return parameter(self, *args).astype(dtype)

        vector = (features,), ("embed",)
        direction = make("query", 0.0, *vector) * (1 + make("gain", 0.0, *vector))
        if not self.use_null:
            return direction, None, None
        bias = make("null_bias", self.null_bias, (), ())
        return direction, make("null", 0.0, *vector), bias

    def direction(self, features: int, dtype: Any) -> jax.Array:
        """Returns the vector that scores sources: query times gain (features,)."""
        return self._vectors(features, dtype)[0]

    def __call__(
        self,
        sources: Sources,
        is_valid: jax.Array,
        extra: jax.Array | None = None,
        has_extra: bool | jax.Array = True,
    ) -> tuple[jax.Array, jax.Array]:
        """Reads the sources, and one more that is in no row yet.

        Args:
          sources: The sources.
          is_valid: Which of them count (rows,).
          extra: The one more (batch, length, embed), or None.
          has_extra: Whether it counts.

        Returns:
          The reading (batch, length, embed), and the weights (rows + 1 with an extra
          source + 1 with a null source, batch, length).
        """
        shape, dtype = jax.tree.leaves(sources.values)[0].shape, sources.dtype
        direction, null, bias = self._vectors(shape[-1], dtype)
        rows = sources.dots(direction)
        rows = rows * jax.lax.rsqrt(sources.mean_squares() + self.epsilon)
        # Finite, so that a read without sources gives zero instead of NaN.
        lowest = jnp.asarray(-1e30, dtype)
        logits = [jnp.where(is_valid[:, None, None], rows, lowest)]
        values = []
        if extra is not None:
            values.append(extra.astype(dtype))
            own = logit(values[-1], direction, self.epsilon)
            logits.append(jnp.where(has_extra, own, lowest)[None])
        if self.use_null:
            values.append(null[None, None])
            own = logit(null, direction, self.epsilon) + bias
            logits.append(jnp.broadcast_to(own, (1, *rows.shape[1:])))
        weights = jax.nn.softmax(jnp.concatenate(logits), axis=0)
        count = rows.shape[0]
        weights = jnp.concatenate(
            [jnp.where(is_valid[:, None, None], weights[:count], 0), weights[count:]]
        )
        reading = sources.mix(weights[:count])
        for weight, value in zip(weights[count:], values, strict=True):
            reading = reading + weight[..., None] * value
        return reading, weights
