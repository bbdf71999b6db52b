"""Stochastic gradient descent with momentum, from optax."""

import optax


def build(
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    nesterov: bool = False,
) -> optax.GradientTransformation:
    """Follows the gradient, averaged over past steps.

    Weight decay is decoupled: it is multiplied by the learning rate and does
    not enter the momentum.

    Reference: Sutskever et al., 2013, Section 2; `optax.sgd`.

    Args:
      learning_rate: Step size or schedule.
      weight_decay: Decay, multiplied by the learning rate.
      momentum: Decay of the average of gradients; 0 is none.
      nesterov: Whether to look one step ahead.

    Returns:
      The gradient transformation.
    """
    return optax.chain(
        optax.trace(momentum, nesterov=nesterov) if momentum else optax.identity(),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )
