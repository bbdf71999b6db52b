"""The constant schedule."""

import optax

from reslab.core.bounds import bounded
from reslab.optim.schedules._warmup import Warmup, after_warmup, shortened


@bounded
def build(steps: int, warmup: Warmup = 0) -> optax.Schedule:
    """Stays at the peak after the warmup.

    Args:
      steps: Length of the run.
      warmup: Steps of linear rise; half the run where they do not fit in it.

    Returns:
      The factor at each step.
    """
    warmup = shortened(warmup, steps)
    return after_warmup(warmup, optax.constant_schedule(1.0))
