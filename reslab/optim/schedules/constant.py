"""The constant schedule."""

import optax

from reslab.core.bounds import Whole, bounded
from reslab.optim.schedules._warmup import after_warmup, shortened


@bounded
def build(steps: int, warmup: Whole = 0) -> optax.Schedule:
    """Stays at the peak after the warmup.

    Args:
      steps: Length of the run.
      warmup: Steps of linear rise; half the run where they do not fit in it.

    Returns:
      The factor at each step.
    """
    warmup = shortened(warmup, steps)
    return after_warmup(warmup, optax.constant_schedule(1.0))
