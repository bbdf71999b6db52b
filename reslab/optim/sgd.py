"""Stochastic gradient descent with momentum, from optax."""

import optax

from reslab.core.bounds import Momentum, bounded
from reslab.optim.base.widened import widened


@bounded
def sgd(
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: float = 0.0,
    momentum: Momentum = 0.9,
    nesterov: bool = False,
) -> optax.GradientTransformation:
    """Follows the gradient, averaged over past steps.

    Weight decay is decoupled: it is multiplied by the learning rate and does
    not enter the momentum. The average is kept in the dtype of the parameters; the step
    is taken in float32 at least.

    Reference: Sutskever et al., 2013, Section 2; `optax.sgd`.

    Args:
      learning_rate: Step size or schedule.
      weight_decay: Decay, multiplied by the learning rate.
      momentum: Decay of the average of gradients; 0 disables it.
      nesterov: Whether to look one step ahead.

    Returns:
      The gradient transformation.
    """
    return widened(
        optax.chain(
            optax.trace(momentum, nesterov=nesterov) if momentum else optax.identity(),
            optax.add_decayed_weights(weight_decay),
            optax.scale_by_learning_rate(learning_rate),
        )
    )


build = sgd
