"""The warmup that every schedule begins with."""

import optax

from reslab.core.notices import warn


def shortened(warmup: int, steps: int) -> int:
    """Returns the warmup, or half of a run that is no longer than it, with a warning.

    Args:
      warmup: Number of warmup steps.
      steps: Length of the run.
    """
    if warmup < max(steps, 1):
        return warmup
    half = steps // 2
    warn(f"{steps} steps have no room for warmup={warmup}: the run warms up in {half}")
    return half


def after_warmup(warmup: int, body: optax.Schedule) -> optax.Schedule:
    """Rises linearly to 1 over `warmup` steps, then follows `body` from its 0.

    The first update already moves: step 0 has the factor 1 / warmup.

    Args:
      warmup: Number of warmup steps.
      body: The schedule after the warmup, counted from its end.

    Returns:
      The joined schedule.
    """
    if not warmup:
        return body
    rise = optax.linear_schedule(1 / warmup, 1.0, max(warmup - 1, 1))
    return optax.join_schedules([rise, body], [warmup])
