"""Steps of fixed size in the norm that belongs to each kind of parameter."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from reslab.core.bounds import Momentum, bounded
from reslab.optim.base.leaves import (
    Layouts,
    decay_and_scale,
    label_leaves,
    map_leaves,
    norm,
    resolve,
    wide,
    zeros,
)
from reslab.optim.base.widened import widened
from reslab.optim.muon import scale_by_muon


class NormBallState(NamedTuple):
    """State of `scale_by_norm_ball`.

    Attributes:
      mean: Average of gradients.
    """

    mean: Any


def scale_by_norm_ball(
    beta: float = 0.95, layouts: Layouts = None
) -> optax.GradientTransformation:
    """Takes the direction of steepest ascent in tables and vectors.

        embedding, head   sign(B)
        vectors           sqrt(size) B / ||B||

    Args:
      beta: Decay of the average B of gradients.
      layouts: A tree of layouts like the parameters.

    Returns:
      The gradient transformation.
    """

    def init(params):
        return NormBallState(zeros(params))

    def update(updates, state, params=None):
        del params
        known = resolve(layouts, updates)
        means = map_leaves(
            lambda _, b, g: beta * b + (1 - beta) * wide(g), known, state.mean, updates
        )

        def one(layout, b, g):
            if layout.kind != "vector":
                return jnp.sign(b).astype(g.dtype)
            count = 1
            for axis in layout.own_axes(b):
                count *= b.shape[axis]
            size = norm(layout, b)
            return (count**0.5 * b / jnp.where(size > 0, size, 1.0)).astype(g.dtype)

        return map_leaves(one, known, means, updates), NormBallState(means)

    return optax.GradientTransformation(init, update)


@bounded
def norm_ball(
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: float = 0.0,
    layouts: Layouts = None,
    beta: Momentum = 0.95,
) -> optax.GradientTransformationExtraArgs:
    """Moves every parameter to the edge of a ball in the norm of its kind.

        B <- beta B + (1 - beta) G;  W <- (1 - lr decay) W - lr D

        kind             norm                         D
        kernels          sqrt(in / out) spectral      sqrt(out / in) U V',  B = U S V'
        embedding, head  largest entry                sign(B)
        vectors          Euclidean / sqrt(size)       sqrt(size) B / ||B||

    D is what a linear minimization over the ball gives. As `others` of `muon` it takes
    AdamW's place for all that is no kernel:
    `noise_adaptive_muon(inner="muon(scale='spectral', others='norm_ball')")` or
    `noise_adaptive_muon(inner='norm_ball')`. A scalar moves by its sign.

    Reference: LANTON, 2025, https://arxiv.org/abs/2510.14009, the table of norms by
    group. Property only, no authors' code: D is compared with its definition in
    float64, and has the inner product with B of the dual norm.

    Args:
      learning_rate: Step size or schedule.
      weight_decay: Decay, multiplied by the learning rate.
      layouts: A tree of layouts like the parameters; None takes leaves of two axes
        for kernels.
      beta: Decay of the average of gradients.

    Returns:
      The gradient transformation.
    """

    def labels(tree):
        return label_leaves(
            lambda layout: "kernels" if layout.kind == "matrix" else "others",
            layouts,
            tree,
        )

    kernels = scale_by_muon(beta, False, "spectral", layouts=layouts)
    others = scale_by_norm_ball(beta, layouts)
    return widened(
        optax.chain(
            optax.partition({"kernels": kernels, "others": others}, labels),
            decay_and_scale(learning_rate, weight_decay),
        )
    )


build = norm_ball
