"""Sums of log decays along chunks of tokens."""

import math

import jax
import jax.numpy as jnp


def running_sums(log_decay: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sums of log decays (..., n) over the last axis so far, in two parts.

    Differences of either part lose nothing, whatever the decays before: the first part
    is of whole multiples of a number so large that all their sums are exact, the second
    of remainders too small to be rounded noticeably. Decays below the logarithm of the
    smallest number are 0 all the same and are taken as that.
    """
    about = jnp.finfo(log_decay.dtype)
    least = 2.0 ** math.ceil(math.log2(-math.log(float(about.smallest_subnormal))))
    unit = least * log_decay.shape[-1] * 2.0 ** -(about.nmant + 1)
    log_decay = jnp.maximum(log_decay, -least)
    coarse = jnp.round(log_decay / unit) * unit  # Its gradient is 0.
    return jnp.cumsum(coarse, axis=-1), jnp.cumsum(log_decay - coarse, axis=-1)
