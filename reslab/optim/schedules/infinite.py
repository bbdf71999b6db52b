"""The infinite schedule: a plateau from which training can always continue."""

import math
from typing import Annotated, Literal

import jax.numpy as jnp
import optax

from reslab.core.bounds import Bounds, Fraction, Positive, Whole, bounded
from reslab.core.errors import ReslabError
from reslab.optim.schedules._warmup import after_warmup, shortened


@bounded
def build(
    steps: int,
    warmup: Whole = 0,
    cooldown: Fraction = 0.2,
    anneal: Fraction = 0.2,
    plateau: Annotated[float, Bounds(above=0, most=1)] = 0.5,
    final: Annotated[float, Bounds(above=0, most=1)] = 0.1,
    shape: Literal["cosine", "inverse_sqrt"] = "cosine",
    sharpness: Positive = 10.0,
) -> optax.Schedule:
    """Cools down to a plateau, stays there, and falls at the end.

        cosine        plateau + (1 - plateau) (1 + cos(pi x)) / 2
        inverse_sqrt  1 + (plateau - 1) h(x) / h(1),  h(x) = 1 / sqrt(1 + s x) - 1
        annealing     plateau (final / plateau)^x

    with x from 0 to 1 over the cooldown, or over the annealing. A run may be gone on
    with from any checkpoint of the plateau, on other data, with no second warmup
    (`train --continue-from`); the annealing is for the model that is to be used.

    Reference: Ibrahim et al., 2024, https://arxiv.org/abs/2403.08763, Section 7. After
    the warmup both shapes equal GPT-NeoX's to 2e-6 of the peak; its warmup begins
    at 0, a step later than here.

    Args:
      steps: Length of the run.
      warmup: Steps of linear rise; half the run where they do not fit in it.
      cooldown: Fraction of the run in which the factor falls to the plateau.
      anneal: Fraction of the run, its end, in which it falls from there.
      plateau: Factor on the plateau.
      final: Factor at the end.
      shape: "cosine" or "inverse_sqrt".
      sharpness: The s of "inverse_sqrt".

    Returns:
      The factor at each step.

    Raises:
      ReslabError: If the phases are longer than the run, or a factor out of range.
    """
    warmup = shortened(warmup, steps)
    cooling, annealing = round(cooldown * steps), round(anneal * steps)
    constant = steps - warmup - cooling - annealing
    if constant < 0:
        raise ReslabError(
            "schedule 'infinite': cooldown and anneal",
            expected="fractions that leave room for the warmup",
            got=f"{cooldown} and {anneal}",
        )
    if final > plateau:
        raise ReslabError(
            "schedule 'infinite': final and plateau",
            expected="final <= plateau",
            got=f"{final} and {plateau}",
        )

    def inverse_sqrt(step):
        x = jnp.minimum(step / max(cooling, 1), 1.0)
        end = 1 / math.sqrt(1 + sharpness) - 1
        return 1 + (plateau - 1) * (1 / jnp.sqrt(1 + sharpness * x) - 1) / end

    cool = optax.cosine_decay_schedule(1.0, max(cooling, 1), alpha=plateau)
    parts = [
        cool if shape == "cosine" else inverse_sqrt,
        optax.constant_schedule(plateau),
        optax.exponential_decay(plateau, max(annealing, 1), final / plateau),
    ]
    body = optax.join_schedules(parts, [cooling, cooling + constant])
    return after_warmup(warmup, body)
