"""LAMB: Adam whose layers move by a fixed fraction of themselves (You et al., 2019)."""

from typing import Literal

import jax.numpy as jnp
import optax

from reslab.core.bounds import Epsilon, Momentum, bounded
from reslab.optim.base.leaves import Layouts, label_leaves, map_leaves, wide
from reslab.optim.base.widened import widened
from reslab.optim.lars import check_no_scalars, trust_ratio


def scale_by_layer_trust_ratio(
    bound: float = 0.0, layouts: Layouts = None
) -> optax.GradientTransformation:
    """Gives every update the norm of its parameter, layer by layer.

    Args:
      bound: Bound of the norm of the parameter; 0 disables it.
      layouts: A tree of layouts like the parameters.

    Returns:
      A gradient transformation without state; a scalar is refused at `init`.
    """

    def init(params):
        check_no_scalars("lamb", layouts, params)
        return optax.EmptyState()

    def update(updates, state, params=None):
        def one(layout, u, p):
            return (u * trust_ratio(layout, p, u, bound=bound)).astype(u.dtype)

        return map_leaves(one, layouts, updates, params), state

    return optax.GradientTransformation(init, update)


def scale_by_uncorrected_adam(
    b1: float, b2: float, epsilon: float
) -> optax.GradientTransformation:
    """Adam's direction without bias correction: m / (sqrt(v) + epsilon).

    Args:
      b1: Decay of the mean of gradients.
      b2: Decay of the mean of squared gradients.
      epsilon: Added to the root.

    Returns:
      The gradient transformation; moments are in float32 at least.
    """

    def init(params):
        def zeros(_, p):
            return jnp.zeros(p.shape, wide(p).dtype)

        return optax.ScaleByAdamState(
            jnp.zeros((), jnp.int32),
            map_leaves(zeros, None, params),
            map_leaves(zeros, None, params),
        )

    def update(updates, state, params=None):
        del params

        def average(decay, power):
            return lambda _, m, g: decay * m + (1 - decay) * wide(g) ** power

        mu = map_leaves(average(b1, 1), None, state.mu, updates)
        nu = map_leaves(average(b2, 2), None, state.nu, updates)

        def one(_, m, v, g):
            return (m / (jnp.sqrt(v) + epsilon)).astype(g.dtype)

        directions = map_leaves(one, None, mu, nu, updates)
        return directions, optax.ScaleByAdamState(state.count + 1, mu, nu)

    return optax.GradientTransformation(init, update)


@bounded
def lamb(
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: float = 0.0,
    layouts: Layouts = None,
    variant: Literal["optax", "google", "clamped", "debiased"] = "optax",
    b1: Momentum = 0.9,
    b2: Momentum = 0.999,
    epsilon: Epsilon = 1e-6,
    adapts_vectors: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Adam's direction and decay, scaled to the norm of each layer's weights.

        u = m / (sqrt(v) + epsilon) + decay W;   W <- W - lr phi(||W||) / ||u|| u

        optax    bias-corrected moments, phi(x) = x; also timm's and NVIDIA's
        google   no bias correction, phi(x) = x; ALBERT's own code
        clamped  no bias correction, phi(x) = min(x, 10); common PyTorch ports
        debiased clamped, with lr sqrt(1 - b2^t) / (1 - b1^t) in place of lr; their
                 second form

    Ratios are taken for each layer of a stack, in float32, where `optax.lamb` would
    take one over all of them. Gains, biases and other vectors have neither ratio nor
    decay unless `adapts_vectors`.

    Reference: You et al., 2019, https://arxiv.org/abs/1904.00962, Algorithm 2. Five
    steps of each variant equal the named codes to 2e-6; ALBERT's is a transcription.

    Args:
      learning_rate: Step size or schedule.
      weight_decay: Decay, a part of the direction.
      layouts: A tree of layouts like the parameters; None takes leaves of two axes
        for kernels.
      variant: "optax", "google", "clamped" or "debiased".
      b1: Decay of the mean of gradients.
      b2: Decay of the mean of squared gradients.
      epsilon: Added to the root of the mean of squares.
      adapts_vectors: Whether vectors have a ratio and decay too.

    Returns:
      The gradient transformation.

    Raises:
      ReslabError: On an unknown variant, or at `init` if a scalar is to be adapted.
    """
    bound = 10.0 if variant in ("clamped", "debiased") else 0.0

    def corrected(count):
        step = count.astype(jnp.float32) + 1
        return jnp.sqrt(1 - b2**step) / (1 - b1**step)

    def labels(tree):
        return label_leaves(
            lambda layout: (
                "adapted" if adapts_vectors or layout.kind != "vector" else "plain"
            ),
            layouts,
            tree,
        )

    direction = (
        optax.scale_by_adam(b1, b2, epsilon)
        if variant == "optax"
        else scale_by_uncorrected_adam(b1, b2, epsilon)
    )
    adapted = optax.chain(
        optax.add_decayed_weights(weight_decay),
        scale_by_layer_trust_ratio(bound, layouts),
    )
    return widened(
        optax.chain(
            direction,
            optax.partition({"adapted": adapted, "plain": optax.identity()}, labels),
            *([optax.scale_by_schedule(corrected)] if variant == "debiased" else []),
            optax.scale_by_learning_rate(learning_rate),
        )
    )


build = lamb
