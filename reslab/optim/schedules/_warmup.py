"""The warmup that every schedule begins with."""

from typing import Annotated

import optax

from reslab.core.bounds import Bounds
from reslab.core.errors import ReslabError

Warmup = Annotated[int, Bounds(least=0)]
# A factor on the peak at the end, and a fraction of the run.
Final = Annotated[float, Bounds(least=0)]
Fraction = Annotated[float, Bounds(least=0, most=1)]


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
      ReslabError: If the warmup does not leave a step to train.
    """
    if warmup >= max(steps, 1):
        raise ReslabError(
            "schedule: warmup",
            expected=f"below the number of steps ({steps})",
            got=str(warmup),
        )
    if not warmup:
        return body
    rise = optax.linear_schedule(1 / warmup, 1.0, max(warmup - 1, 1))
    return optax.join_schedules([rise, body], [warmup])
