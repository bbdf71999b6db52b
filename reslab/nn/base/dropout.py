"""Dropout, as the model's parts apply it (Srivastava et al., 2014)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from reslab.core.precision import statistics_dtype
from reslab.core.randomness import training_key


def dropout(module: nn.Module, x: jax.Array, rate: float) -> jax.Array:
    """Zeroes entries at random during training and scales up the others.

        y = keep / (1 - rate) * x,    keep ~ Bernoulli(1 - rate)

    Scaled in float32 and returned in the dtype of `x`. Outside of training, where the
    model is given no random key, and at rate 0, it returns `x`.

    Reference: Srivastava et al., 2014, JMLR 15, Section 10 (scaling while training).

    Args:
      module: The module that draws; its random stream is split by layer.
      x: Any array.
      rate: Probability of zero for each entry.

    Raises:
      ReslabError: If random numbers could not be drawn again in the backward pass.
    """
    key = training_key(module) if rate else None
    if key is None:
        return x
    is_kept = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    scaled = x.astype(statistics_dtype(x.dtype)) / (1.0 - rate)
    return jnp.where(is_kept, scaled, 0.0).astype(x.dtype)
