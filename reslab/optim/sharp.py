"""The sharp operator of the spectral norm: Muon's direction, by its nuclear norm."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from reslab.core import registry
from reslab.core.bounds import Momentum, NonNegative, Repeats, bounded
from reslab.optim.base.leaves import Layouts, map_leaves, resolve, wide, zeros
from reslab.optim.muon import ADAMW, Products, product_dtype, with_others
from reslab.optim.orthogonalization import orthogonalize_leaves, polar_express

RENAMED = {"momentum": "beta", "iterations": "ns_steps", **ADAMW}


class SharpState(NamedTuple):
    """State of `scale_by_sharp`.

    Attributes:
      mean: Average of gradients.
    """

    mean: Any


@bounded
def scale_by_sharp(
    beta: float = 0.95,
    ns_steps: int = 6,
    products: Products = "float32",
    layouts: Layouts = None,
) -> optax.GradientTransformation:
    """Replaces gradients of kernels by the sharp operator of their average.

        M <- beta M + (1 - beta) G;   update = ||M||_* U V',   M = U S V'

    Args:
      beta: Decay of the average of gradients.
      ns_steps: Number of polynomials, of Polar Express.
      products: Dtype of the products: "bfloat16" or "float32".
      layouts: A tree of layouts like the parameters.

    Returns:
      The gradient transformation, for kernels alone.
    """
    rows = polar_express(ns_steps)

    def init(params):
        return SharpState(zeros(params))

    def update(updates, state, params=None):
        del params
        known = resolve(layouts, updates)
        means = map_leaves(
            lambda _, m, g: beta * m + (1 - beta) * wide(g), known, state.mean, updates
        )
        dtype = product_dtype(products, means)
        found = orthogonalize_leaves(means, known, rows, dtype=dtype, margin=1.01)

        def one(layout, m, x, g):
            x = wide(x)
            nuclear = jnp.sum(m * x, layout.own_axes(x), keepdims=True)
            return (nuclear * x).astype(g.dtype)

        return map_leaves(one, known, means, found, updates), SharpState(means)

    return optax.GradientTransformation(init, update)


@bounded
def sharp(
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: float = 0.0,
    layouts: Layouts = None,
    beta: Momentum = 0.95,
    ns_steps: Repeats = 6,
    products: Products = "float32",
    others: registry.Spec = "adamw",
    others_scale: NonNegative = 1.0,
) -> optax.GradientTransformationExtraArgs:
    """Steepest descent in the spectral norm, as far as the gradient is large.

        M <- beta M + (1 - beta) G;  W <- (1 - lr decay) W - lr ||M||_* U V'

    The nuclear norm is <M, U V'>, with U V' by polynomials, which is all of it but a
    few hundredths. Unlike `muon`'s, a step shrinks with the gradient, as in plain
    gradient descent. `drop_muon(inner='sharp')` is Drop-Muon as its paper has it.

    Reference: Drop-Muon, 2025, https://arxiv.org/abs/2510.02239, Algorithm 1 (the
    operator X#). Property only, no authors' code: it is compared with the singular
    value decomposition.

    Args:
      learning_rate: Step size or schedule.
      weight_decay: Decay, multiplied by the learning rate.
      layouts: A tree of layouts like the parameters; None takes leaves of two axes
        for kernels.
      beta: Decay of the average of gradients; the paper's beta is 1 minus this.
      ns_steps: Number of polynomials, of Polar Express.
      products: Dtype of the products: "bfloat16" or "float32".
      others: Spec of the optimizer of all other parameters.
      others_scale: Factor on its learning rate.

    Returns:
      The gradient transformation.

    Raises:
      ReslabError: On unknown products.
    """
    return with_others(
        scale_by_sharp(beta, ns_steps, products, layouts),
        learning_rate,
        weight_decay,
        layouts,
        others=others,
        others_scale=others_scale,
    )


build = sharp
