"""The constant schedule."""

import optax

from reslab.core.bounds import bounded
from reslab.optim.schedules._warmup import Warmup, after_warmup


@bounded
def build(steps: int, warmup: Warmup = 0) -> optax.Schedule:
    """Stays at the peak after the warmup.

    Args:
      steps: Length of the run.
      warmup: Steps of linear rise.

    Returns:
      The factor at each step.
    """
    return after_warmup(warmup, steps, optax.constant_schedule(1.0))
