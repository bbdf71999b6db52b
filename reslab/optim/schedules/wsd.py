"""The warmup-stable-decay schedule (Hu et al., 2024)."""

import optax

from reslab.core.bounds import Fraction, Whole, bounded
from reslab.core.errors import ReslabError
from reslab.optim.schedules._warmup import after_warmup, shortened


@bounded
def build(
    steps: int, warmup: Whole = 0, decay: Fraction = 0.2, final: Fraction = 0.0
) -> optax.Schedule:
    """Stays at the peak, then falls to `final` along a line in the last steps.

    Reference: Hu et al., 2024, https://arxiv.org/abs/2404.06395, Eq. 1; the
    linear fall as in Haegele et al., 2024, https://arxiv.org/abs/2405.18392.

    Args:
      steps: Length of the run.
      warmup: Steps of linear rise; half the run where they do not fit in it.
      decay: Fraction of the run in which the factor falls.
      final: Factor at the end.

    Returns:
      The factor at each step.

    Raises:
      ReslabError: If warmup and decay together are longer than the run.
    """
    warmup = shortened(warmup, steps)
    falling = round(decay * steps)
    stable = steps - warmup - falling
    if stable < 0:
        raise ReslabError(
            "schedule 'wsd': decay",
            expected="a fraction that leaves room for the warmup",
            got=str(decay),
        )
    parts = [
        optax.constant_schedule(1.0),
        optax.linear_schedule(1.0, final, max(falling, 1)),
    ]
    return after_warmup(warmup, optax.join_schedules(parts, [stable]))
