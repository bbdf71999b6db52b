"""The warmup that every schedule begins with."""

import optax

from reslab.core.errors import ReslabError


def after_warmup(warmup: int, steps: int, body: optax.Schedule) -> optax.Schedule:
    """Rises linearly to 1 over `warmup` steps, then follows `body` from its 0.

    The first update already moves: step 0 has the factor 1 / warmup.

    Args:
      warmup: Number of warmup steps.
      steps: Length of the run.
      body: The schedule after the warmup, counted from its end.

    Returns:
      The joined schedule.

    Raises:
      ReslabError: If the warmup is negative or does not leave a step to train.
    """
    if not 0 <= warmup < max(steps, 1):
        raise ReslabError(
            "schedule: warmup",
            expected=f"between 0 and the number of steps ({steps})",
            got=str(warmup),
        )
    if not warmup:
        return body
    rise = optax.linear_schedule(1 / warmup, 1.0, max(warmup - 1, 1))
    return optax.join_schedules([rise, body], [warmup])
