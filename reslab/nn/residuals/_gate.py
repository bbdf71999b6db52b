"""Gates of readings that are added to a stream."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.parameters import parameter


class Gate(nn.Module):
    """Returns the factor with which a reading is added to the stream.

    Attributes:
      kind: "scalar", "vector" or "alpha".
      param_dtype: Dtype in which parameters are stored.
    """

    kind: str
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, reading: jax.Array, stream: jax.Array) -> jax.Array:
        """Scales `reading`, both (batch, length, embed)."""
        dtype, features = reading.dtype, reading.shape[-1]

        def make(name, value, shape, axes):
            init = nn.initializers.constant(value)
            args = (name, init, shape, axes, self.param_dtype)
            return parameter(self, *args).astype(dtype)

        if self.kind == "alpha":
            return make("alpha", 0.0, (), ()) * reading
        if self.kind == "scalar":
            return jax.nn.sigmoid(make("logit", -2.0, (), ())) * reading
        kernel = make("kernel", 0.0, (features, features), ("embed", None))
        bias = make("bias", -2.0, (features,), ("embed",))
        logits = stream.astype(dtype) @ kernel + bias[None, None]
        return jax.nn.sigmoid(logits) * reading
