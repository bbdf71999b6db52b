"""The two ends of models that classify images."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.parameters import parameter
from reslab.core.precision import statistics_dtype


class Classifier(nn.Module):
    """Logits of classes from one vector each.

    Attributes:
      classes: Number of classes.
      param_dtype: Dtype in which kernel and bias are stored.
    """

    classes: int
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Float32 logits (batch, classes) of features (batch, embed)."""
        kernel = parameter(
            self,
            "kernel",
            nn.initializers.lecun_normal(),
            (x.shape[-1], self.classes),
            ("embed", None),
            self.param_dtype,
        )
        bias = parameter(
            self,
            "bias",
            nn.initializers.zeros,
            (self.classes,),
            (None,),
            self.param_dtype,
        )
        wide = statistics_dtype(x.dtype)
        y = jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=wide)
        return y + jnp.broadcast_to(bias.astype(wide), y.shape)


def as_floats(images: jax.Array, dtype: Any) -> jax.Array:
    """Images in a compute dtype; integers from 0 to 255 become -1 to 1."""
    if jnp.issubdtype(images.dtype, jnp.integer):
        # In bfloat16 the quotient would be rounded before the subtraction.
        return (images.astype(statistics_dtype(dtype)) / 127.5 - 1).astype(dtype)
    return images.astype(dtype)
