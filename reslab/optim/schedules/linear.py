"""The linear schedule."""

import optax

from reslab.core.bounds import Fraction, Whole, bounded
from reslab.optim.schedules._warmup import after_warmup, shortened


@bounded
def build(steps: int, warmup: Whole = 0, final: Fraction = 0.0) -> optax.Schedule:
    """Falls from the peak to `final` along a line.

    Args:
      steps: Length of the run.
      warmup: Steps of linear rise; half the run where they do not fit in it.
      final: Factor at the end.

    Returns:
      The factor at each step.
    """
    warmup = shortened(warmup, steps)
    fall = optax.linear_schedule(1.0, final, max(steps - warmup, 1))
    return after_warmup(warmup, fall)
