"""The cosine schedule (Loshchilov & Hutter, 2016)."""

import optax

from reslab.core.bounds import Fraction, Whole, bounded
from reslab.optim.schedules._warmup import after_warmup, shortened


@bounded
def build(steps: int, warmup: Whole = 0, final: Fraction = 0.1) -> optax.Schedule:
    """Falls from the peak to `final` along half a cosine.

        factor = final + (1 - final) (1 + cos(pi t / T)) / 2

    Reference: Loshchilov & Hutter, 2016, https://arxiv.org/abs/1608.03983,
    Eq. 5 (one cycle).

    Args:
      steps: Length of the run.
      warmup: Steps of linear rise; half the run where they do not fit in it.
      final: Factor at the end.

    Returns:
      The factor at each step.
    """
    warmup = shortened(warmup, steps)
    fall = optax.cosine_decay_schedule(1.0, max(steps - warmup, 1), alpha=final)
    return after_warmup(warmup, fall)
