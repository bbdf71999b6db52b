"""Muon: momentum whose singular values are all made one (Jordan et al., 2024)."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from reslab.core import registry, surroundings
from reslab.core.bounds import Momentum, NonNegative, Repeats, bounded
from reslab.core.layout import Layout
from reslab.core.precision import statistics_dtype
from reslab.optim.base.leaves import (
    Layouts,
    decay_and_scale,
    label_leaves,
    map_leaves,
    wide,
    zeros,
)
from reslab.optim.base.widened import widened
from reslab.optim.orthogonalization import (
    Coefficients,
    coefficients,
    orthogonalize_leaves,
)

Scale = Literal["moonlight", "keller", "spectral"]
Products = Literal["bfloat16", "float32"]
# Options of AdamW belong to the spec of `others`.
ADAMW = {"b1": "others.b1", "b2": "others.b2", "epsilon": "others.epsilon"}
RENAMED = {"momentum": "beta", "table": "ns_coeffs", "iterations": "ns_steps", **ADAMW}


class MuonState(NamedTuple):
    """State of `scale_by_muon`.

    Attributes:
      momentum: Sum of gradients, each step's worth `beta` times the next's.
    """

    momentum: Any


def size_factor(layout: Layout, shape: tuple[int, ...], scale: str) -> float:
    """Returns the factor on the update of a kernel, by its shape.

    moonlight  0.2 sqrt(max(in, out)): RMS 0.2, as AdamW's
    keller     sqrt(max(1, out / in))
    spectral   sqrt(out / in): the same change of outputs at any width
    """
    inputs, outputs = 1, 1
    for axis in layout.inputs:
        inputs *= shape[axis]
    for axis in layout.outputs:
        outputs *= shape[axis]
    if scale == "moonlight":
        return 0.2 * max(inputs, outputs) ** 0.5
    ratio = outputs / inputs
    return max(1.0, ratio) ** 0.5 if scale == "keller" else ratio**0.5


@bounded
def scale_by_muon(
    beta: float = 0.95,
    nesterov: bool = True,
    scale: Scale = "moonlight",
    ns_coeffs: str | tuple = "keller",
    ns_steps: int = 5,
    products: Products = "bfloat16",
    layouts: Layouts = None,
) -> optax.GradientTransformation:
    """Replaces gradients of kernels by orthogonalized momentum.

        M <- beta M + G;   U = beta M + G  (nesterov)  or  M
        update = size_factor * orthogonalized(U)

    The momentum is kept in float32 at least. Each layer, and each expert, is a
    matrix of its own; see `orthogonalize_leaves` for how the work is spread over
    devices.

    Args:
      beta: Decay of the sum of gradients.
      nesterov: Whether to look one step ahead.
      scale: One of `Scale`, see `size_factor`.
      ns_coeffs: "keller", "polar_express", or rows (a, b, c); see
        `reslab.optim.orthogonalization`.
      ns_steps: Number of polynomials that are applied.
      products: Dtype of the products: "bfloat16" or "float32".
      layouts: A tree of layouts like the parameters; None takes leaves of two axes,
        (inputs, outputs).

    Returns:
      The gradient transformation, for kernels alone.

    Raises:
      ReslabError: On an unknown scale or products, or a table that is too long.
    """
    rows, margin = coefficients(ns_coeffs, ns_steps), table_margin(ns_coeffs)

    def init(params):
        return MuonState(zeros(params))

    def update(updates, state, params=None):
        del params
        sums = accumulated(beta, state.momentum, updates, layouts)
        ahead = accumulated(beta, sums, updates, layouts) if nesterov else sums
        moves = directions(
            ahead, updates, layouts, rows, scale, products, margin=margin
        )
        return moves, MuonState(sums)

    return optax.GradientTransformation(init, update)


def accumulated(beta: float, momentum: Any, updates: Any, layouts: Layouts) -> Any:
    """Returns beta M + G, in float32 at least."""
    return map_leaves(lambda _, m, g: beta * m + wide(g), layouts, momentum, updates)


def directions(
    momentum: Any,
    updates: Any,
    layouts: Layouts,
    rows: Coefficients,
    scale: str,
    products: str,
    **options: Any,
) -> Any:
    """Orthogonalizes momentum and scales it by shape, in the dtypes of `updates`.

    Args:
      momentum: Kernels.
      updates: The gradients.
      layouts: A tree of layouts.
      rows: Coefficients of each step.
      scale: One of `Scale`.
      products: Dtype of the products: "bfloat16" or "float32".
      **options: `margin` and `steps` of `orthogonalize_leaves`.
    """
    dtype = product_dtype(products, momentum)
    found = orthogonalize_leaves(momentum, layouts, rows, dtype=dtype, **options)

    def scaled(layout, x, g):
        return (size_factor(layout, g.shape, scale) * wide(x)).astype(g.dtype)

    return map_leaves(scaled, layouts, found, updates)


def table_margin(table: str | tuple) -> float:
    """Factor on the Frobenius norm before the first polynomial."""
    return 1.01 if table == "polar_express" else 1.0


def product_dtype(products: str, tree: Any) -> Any:
    """The dtype of the products; float64 gradients are never narrowed to float32."""
    if products == "bfloat16":
        return jnp.bfloat16
    widest = [statistics_dtype(leaf.dtype) for leaf in jax.tree.leaves(tree)]
    return max(widest, key=lambda one: one.itemsize, default=jnp.float32)


def with_others(
    direction: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: float,
    layouts: Layouts,
    *,
    kernel_decay: float | None = None,
    others: registry.Spec,
    others_scale: float,
) -> optax.GradientTransformationExtraArgs:
    """Applies a direction to kernels, and an optimizer to all other parameters.

    Args:
      direction: The transformation of kernels inside the model.
      learning_rate: Step size or schedule.
      weight_decay: Decay, multiplied by the learning rate.
      layouts: A tree of layouts like the parameters.
      kernel_decay: Decay of the kernels, where it is not `weight_decay`.
      others: Spec of the optimizer of all other parameters.
      others_scale: Factor on its learning rate.

    Returns:
      The gradient transformation.
    """

    def labels(tree):
        return label_leaves(
            lambda layout: "kernels" if layout.kind == "matrix" else "others",
            layouts,
            tree,
        )

    def rate(step):
        base = learning_rate(step) if callable(learning_rate) else learning_rate
        return others_scale * base

    decay = weight_decay if kernel_decay is None else kernel_decay
    return widened(
        optax.partition(
            {
                "kernels": optax.chain(
                    direction, decay_and_scale(learning_rate, decay)
                ),
                "others": registry.make(
                    "optimizers",
                    others,
                    **surroundings.Optimizers(
                        learning_rate=rate,
                        weight_decay=weight_decay,
                        layouts=layouts,
                    ),
                ),
            },
            labels,
        )
    )


@bounded
def muon(
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: float = 0.0,
    layouts: Layouts = None,
    beta: Momentum = 0.95,
    nesterov: bool = True,
    scale: Scale = "moonlight",
    ns_coeffs: str | tuple = "keller",
    ns_steps: Repeats = 5,
    products: Products = "bfloat16",
    others: registry.Spec = "adamw",
    others_scale: NonNegative = 1.0,
) -> optax.GradientTransformationExtraArgs:
    """Orthogonalized momentum for kernels, AdamW for all other parameters.

        M <- beta M + G;  U = G + beta M
        W <- (1 - lr decay) W - lr * scale * orthogonalized(U)

    Kernels are the matrices inside the model, by logical axes: heads of attention
    are one matrix together, stacked layers and experts one each. Embeddings, heads,
    norms and biases are updated by `others` with the learning rate times
    `others_scale`.

    `scale="moonlight"` makes updates as large as AdamW's, whose learning rates then
    serve (Liu et al.); `"keller"` is the scale of the method's author, with learning
    rates near 0.02 and `others_scale` near 0.015.

    Reference: Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/; Liu
    et al., 2025, https://arxiv.org/abs/2502.16982, Eq. 4. Five steps equal both
    authors' code to 1e-5 in float32 and 5e-3 in bfloat16; the first author's scale
    of convolutions, by the last two axes of the kernel alone, is not reproduced, and
    `optax.contrib.muon`'s bias-corrected Nesterov momentum is neither's.

    Args:
      learning_rate: Step size or schedule.
      weight_decay: Decay, multiplied by the learning rate.
      layouts: A tree of layouts like the parameters; None takes leaves of two axes
        for kernels.
      beta: Decay of the sum of gradients.
      nesterov: Whether to look one step ahead.
      scale: "moonlight", "keller" or "spectral".
      ns_coeffs: Polynomials: "keller", "polar_express", or rows (a, b, c).
      ns_steps: Number of polynomials that are applied.
      products: Dtype of the products: "bfloat16", as in the authors' code, or
        "float32".
      others: Spec of the optimizer of all other parameters.
      others_scale: Factor on its learning rate.

    Returns:
      The gradient transformation.

    Raises:
      ReslabError: On an unknown scale or products, or a table that is too long.
    """
    direction = scale_by_muon(
        beta, nesterov, scale, ns_coeffs, ns_steps, products, layouts
    )
    return with_others(
        direction,
        learning_rate,
        weight_decay,
        layouts,
        others=others,
        others_scale=others_scale,
    )


build = muon
