"""The linear schedule."""

import jax.numpy as jnp
import optax

from reslab.core.bounds import Fraction, Whole, bounded
from reslab.optim.schedules._warmup import after_warmup, shortened


@bounded
def build(
    steps: int, warmup: Whole = 0, final: Fraction = 0.0, floor: Fraction = 0.0
) -> optax.Schedule:
    """Falls from the peak to `final` along a line.

    Args:
      steps: Length of the run.
      warmup: Steps of linear rise; half the run where they do not fit in it.
      final: Factor at the end.
      floor: Least factor: the line, cut off. With `final=0` it is GPT-NeoX's, to 2e-6.

    Returns:
      The factor at each step.
    """
    warmup = shortened(warmup, steps)
    fall = optax.linear_schedule(1.0, final, max(steps - warmup, 1))
    if not floor:
        return after_warmup(warmup, fall)
    return after_warmup(warmup, lambda step: jnp.maximum(fall(step), floor))
