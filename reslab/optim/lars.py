"""LARS: every layer moves by a fixed fraction of itself (You et al., 2017)."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from reslab.core.bounds import Epsilon, Momentum, NonNegative, bounded
from reslab.core.errors import ReslabError
from reslab.core.layout import Layout
from reslab.optim.base.leaves import Layouts, map_leaves, norm, resolve, wide


def check_no_scalars(method: str, given: Layouts, tree: Any) -> None:
    """Refuses trust ratios of scalars, which would only keep their sign.

    Raises:
      ReslabError: If a parameter that is to be adapted is a scalar in each layer.
    """

    def one(layout, x):
        if not layout.own_axes(x):
            raise ReslabError(
                f"optimizers {method!r}: trust ratio on a scalar",
                expected="parameters with axes of their own in each layer",
                got=f"shape {tuple(x.shape)}",
                hint="adapts_vectors=False, or a group of another method",
            )
        return x

    map_leaves(one, given, tree)


def trust_ratio(
    layout: Layout,
    param: jax.Array,
    update: jax.Array,
    *,
    coefficient: float = 1.0,
    epsilon: float = 0.0,
    bound: float = 0.0,
) -> jax.Array:
    """Divides the norm of each layer's parameter by its update's; 1 if one is 0.

    Args:
      layout: What is stacked.
      param: The parameter.
      update: The update.
      coefficient: Factor on the ratio.
      epsilon: Added to the norm of the update.
      bound: Bound of the norm of the parameter; 0 disables it.

    Returns:
      The ratios; axes that are not stacked have size 1.
    """
    size, step = norm(layout, param), norm(layout, update)
    given = jnp.minimum(size, bound) if bound else size
    ratio = coefficient * given / jnp.where(step > 0, step + epsilon, 1.0)
    return jnp.where((size > 0) & (step > 0), ratio, 1.0)


@bounded
def lars(
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: float = 0.0,
    layouts: Layouts = None,
    variant: Literal["google", "popular", "paper", "averaged"] = "google",
    coefficient: NonNegative = 1e-3,
    momentum: Momentum = 0.9,
    nesterov: bool = False,
    epsilon: Epsilon = 0.0,
    clips: bool = False,
    adapts_vectors: bool = False,
) -> optax.GradientTransformation:
    """Scales each layer's gradient to its weights, then averages over steps.

        google   g <- G + decay W;  v <- m v + lr q g;  W <- W - v
        popular  g <- G + decay W;  v <- m v + g;       W <- W - lr q(v) v
        paper    v <- m v + q (G + decay W);            W <- W - lr v
        averaged v <- m v + (1 - m) (G + decay W);      W <- W - lr q(v) v

        q = coefficient ||W|| / ||g||,  in "paper"  / (||G|| + decay ||W|| + epsilon)

    Ratios are taken for each layer of a stack, in float32, where `optax.lars` would
    take one over all of them. Gains, biases and other vectors have neither ratio nor
    decay. The ratio carries `coefficient`: learning rates are large, 1 to 30.

    Reference: You et al., 2017, https://arxiv.org/abs/1708.03888, Algorithm 1.
    "google" and "popular" equal a transcription of TensorFlow's official models,
    "paper" equals timm, and "averaged" with `coefficient` 1, `epsilon` 1e-6 and
    `adapts_vectors` the baseline of the layer-wise learning rates
    (https://arxiv.org/abs/2605.22297), to 1e-6.

    Args:
      learning_rate: Step size or schedule.
      weight_decay: Decay, which enters the momentum.
      layouts: A tree of layouts like the parameters; None takes leaves of two axes
        for kernels.
      variant: "google", "popular", "paper" or "averaged".
      coefficient: Factor on the ratio.
      momentum: Decay of the average of gradients.
      nesterov: Whether to look one step ahead.
      epsilon: Added to the norms that divide.
      clips: Whether the ratio over the learning rate is at most 1 (LARC), in "paper".
      adapts_vectors: Whether vectors have a ratio and decay too.

    Returns:
      The gradient transformation.

    Raises:
      ReslabError: On an unknown variant, or at `init` if a scalar is to be adapted.
    """
    if clips and variant != "paper":
        raise ReslabError("lars: clips", expected="variant 'paper'", got=repr(variant))

    def is_adapted(layout):
        return adapts_vectors or layout.kind != "vector"

    def rate(count):
        return learning_rate(count) if callable(learning_rate) else learning_rate

    def init(params):
        if adapts_vectors:
            check_no_scalars("lars", layouts, params)
        trace = jax.tree.map(lambda p: jnp.zeros(p.shape, wide(p).dtype), params)
        return optax.TraceState(trace), jnp.zeros((), jnp.int32)

    def update(updates, state, params=None):
        (trace,), count = state
        lr = rate(count)
        known = resolve(layouts, updates)

        def fed(layout, g, p):
            """Returns the term that enters the momentum."""
            g, p = wide(g), wide(p)
            if not is_adapted(layout):
                g = (1 - momentum) * g if variant == "averaged" else g
                return lr * g if variant == "google" else g
            decayed = g + weight_decay * p
            if variant == "averaged":
                return (1 - momentum) * decayed
            if variant == "popular":
                return decayed
            if variant == "google":
                q = trust_ratio(
                    layout, p, decayed, coefficient=coefficient, epsilon=epsilon
                )
                return lr * q * decayed
            size, step = norm(layout, p), norm(layout, g)
            q = coefficient * size / (step + weight_decay * size + epsilon)
            q = jnp.where((size > 0) & (step > 0), q, 1.0)
            q = jnp.minimum(q / lr, 1.0) if clips else q
            # The papers' codes adapt only parameters with decay.
            return q * decayed if weight_decay else decayed

        added = map_leaves(fed, known, updates, params)
        trace = jax.tree.map(lambda v, g: momentum * v + g, trace, added)
        ahead = trace
        if nesterov:
            ahead = jax.tree.map(lambda v, g: momentum * v + g, trace, added)

        def moved(layout, v, g, p):
            if variant == "google":
                return (-v).astype(g.dtype)
            if variant in ("popular", "averaged") and is_adapted(layout):
                q = trust_ratio(layout, p, v, coefficient=coefficient, epsilon=epsilon)
                v = q * v
            return (-lr * v).astype(g.dtype)

        moves = map_leaves(moved, known, ahead, updates, params)
        return moves, (optax.TraceState(trace), count + 1)

    return optax.GradientTransformation(init, update)


build = lars
