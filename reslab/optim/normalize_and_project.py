"""NaP: kernels stay as large as they began (Lyle et al., 2024)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from reslab.core.bounds import Count, bounded
from reslab.optim.base.leaves import Layouts, map_leaves, norm, resolve, wide
from reslab.optim.base.widened import widened
from reslab.optim.base.wrapping import wrapper


class ProjectionState(NamedTuple):
    """State of `normalize_and_project`.

    Attributes:
      count: Number of steps so far.
      norms: The initial norm of every kernel in every layer.
      inner: State of the optimizer inside.
    """

    count: jax.Array
    norms: Any
    inner: Any


@bounded
@wrapper("adamw")
def normalize_and_project(
    inner: optax.GradientTransformation,
    *,
    layouts: Layouts = None,
    every: Count = 1,
) -> optax.GradientTransformationExtraArgs:
    """Rescales every kernel to its initial norm after the optimizer's step.

        W <- (W + update) ||W_0|| / ||W + update||

    Where a norm follows, the function does not change and the learning rate is the
    schedule's alone, not lessened by growing weights. Kernels inside the model are
    projected, layer by layer; embedding, head and vectors are not. Decay of kernels
    is all but undone by the projection: choose 0. The paper puts a normalization
    before every nonlinearity; that is the model's part.

    Reference: Lyle et al., 2024, https://arxiv.org/abs/2407.01800, Algorithm 1. There
    is no official code; kernels equal those of a third party's after five steps to
    1e-5, whose way with gains and biases was not followed.

    Args:
      learning_rate: Step size or schedule.
      weight_decay: Decay, multiplied by the learning rate.
      layouts: A tree of layouts like the parameters; None takes leaves of two axes
        for kernels.
      inner: Spec of the optimizer.
      every: Steps between two projections.

    Returns:
      The gradient transformation.

    Raises:
      ReslabError: If the interval is below 1.
    """
    around = optax.with_extra_args_support(inner)

    def kernel_norm(layout, p):
        return norm(layout, p) if layout.kind == "matrix" else optax.MaskedNode()

    def init(params):
        norms = map_leaves(kernel_norm, layouts, params)
        return ProjectionState(jnp.zeros((), jnp.int32), norms, around.init(params))

    def update(updates, state, params=None, **extra):
        known = resolve(layouts, updates)
        moves, inner_state = around.update(updates, state.inner, params, **extra)
        is_due = (state.count + 1) % every == 0

        def one(layout, u, p, wanted):
            if layout.kind != "matrix":
                return u
            moved = wide(p) + wide(u)
            size = norm(layout, moved)
            factor = jnp.where(size > 0, wanted / jnp.where(size > 0, size, 1.0), 1.0)
            projected = (moved * factor - wide(p)).astype(u.dtype)
            return jnp.where(is_due, projected, u)

        projected = map_leaves(one, known, moves, params, state.norms)
        return projected, ProjectionState(state.count + 1, state.norms, inner_state)

    return widened(optax.GradientTransformationExtraArgs(init, update))


build = normalize_and_project
