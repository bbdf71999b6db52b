"""AdamW (Loshchilov & Hutter, 2017), from optax."""

import optax

from reslab.core.bounds import Epsilon, Momentum, bounded
from reslab.optim.base.widened import widened


@bounded
def adamw(
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: float = 0.0,
    b1: Momentum = 0.9,
    b2: Momentum = 0.95,
    epsilon: Epsilon = 1e-8,
    nesterov: bool = False,
    epsilon_scale: float = 1.0,
) -> optax.GradientTransformation:
    """Adam with decay applied to the weights and not to the gradient.

    Moments are kept in the dtype of the parameters; the step is taken in float32 at
    least.

    Reference: Loshchilov & Hutter, 2017, https://arxiv.org/abs/1711.05101,
    Algorithm 2; `optax.adamw`.

    Args:
      learning_rate: Step size or schedule.
      weight_decay: Decay, multiplied by the learning rate.
      b1: Decay of the mean of gradients.
      b2: Decay of the mean of squared gradients.
      epsilon: Added to the root of the mean of squares.
      nesterov: Whether to look one step ahead.
      epsilon_scale: Factor on epsilon, of a scaling.

    Returns:
      The gradient transformation.
    """
    return widened(
        optax.adamw(
            learning_rate,
            b1=b1,
            b2=b2,
            eps=epsilon * epsilon_scale,
            weight_decay=weight_decay,
            nesterov=nesterov,
        )
    )


build = adamw
