"""The exponential schedule."""

import jax.numpy as jnp
import optax

from reslab.core.bounds import Fraction, Positive, Whole, bounded
from reslab.optim.schedules._warmup import after_warmup, shortened


@bounded
def build(
    steps: int, warmup: Whole = 0, rate: Positive = 0.693, floor: Fraction = 0.0
) -> optax.Schedule:
    """Falls from the peak by the same share in every step.

        factor = max(exp(-rate x), floor),  x from 0 to 1 after the warmup

    With the default rate the factor ends at a half.

    Reference: GPT-NeoX, `AnnealingLR`, https://github.com/EleutherAI/gpt-neox; equal
    to 2e-6 of the peak after its warmup, which begins at 0, a step later than here.

    Args:
      steps: Length of the run.
      warmup: Steps of linear rise; half the run where they do not fit in it.
      rate: Logarithm of the peak over the last factor.
      floor: Least factor.

    Returns:
      The factor at each step.
    """
    warmup = shortened(warmup, steps)
    span = max(steps - warmup, 1)

    def fall(step):
        return jnp.maximum(jnp.exp(-rate * step / span), floor)

    return after_warmup(warmup, fall)
