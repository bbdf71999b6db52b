"""Cosine cycles that warm up again, one for each data set (Ibrahim et al., 2024)."""

import optax

from reslab.core.bounds import Count, Fraction, Whole, bounded
from reslab.core.errors import ReslabError
from reslab.optim.schedules._warmup import after_warmup, shortened


@bounded
def build(
    steps: int, warmup: Whole = 0, cycles: Count = 1, final: Fraction = 0.1
) -> optax.Schedule:
    """Warms up and falls along half a cosine, once for each of `cycles` equal parts.

    Each part belongs to a data set of its own; the second warmup is what lets the
    model learn new data again after the learning rate has fallen.

    Reference: Ibrahim et al., 2024, https://arxiv.org/abs/2403.08763, Section 6
    (re-warming and re-decaying); one cycle equals GPT-NeoX's cosine to 2e-6.

    Args:
      steps: Length of the run.
      warmup: Steps of linear rise in every cycle; half of one where they do not fit.
      cycles: Number of cycles; the last takes the steps that are left over.
      final: Factor at the end of each.

    Returns:
      The factor at each step.

    Raises:
      ReslabError: If there are more cycles than steps.
    """
    if cycles > max(steps, 1):
        raise ReslabError(
            "schedule 'rewarmed': cycles",
            expected=f"at most one for each of {steps} steps",
            got=str(cycles),
        )
    length = steps // cycles
    warmup = shortened(warmup, length)

    def cycle(size):
        fall = optax.cosine_decay_schedule(1.0, max(size - warmup, 1), alpha=final)
        return after_warmup(warmup, fall)

    last = steps - length * (cycles - 1)
    parts = [cycle(length)] * (cycles - 1) + [cycle(last)]
    return optax.join_schedules(parts, [length * n for n in range(1, cycles)])
