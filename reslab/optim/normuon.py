"""NorMuon: Muon whose neurons all move as far (Li et al., 2025)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from reslab.core import registry
from reslab.core.bounds import Momentum, NonNegative, Repeats, bounded
from reslab.core.layout import Layout
from reslab.optim.base.leaves import (
    Layouts,
    map_leaves,
    split,
    wide,
)
from reslab.optim.muon import (
    ADAMW,
    RENAMED,
    Products,
    Scale,
    scale_by_muon,
    with_others,
)

__all__ = ["RENAMED", "build", "scale_by_neuron"]

# Here `b2` belongs to the neurons.
RENAMED = {**RENAMED, **ADAMW, "adam_b2": "others.b2"}
del RENAMED["b2"]


class NorMuonState(NamedTuple):
    """State of `scale_by_neuron`.

    Attributes:
      squares: Average of the mean square of each neuron's direction.
    """

    squares: Any


def _reduced(layout: Layout, x: jax.Array) -> tuple[int, ...]:
    """The axes of the shorter side, over which a neuron's mean is taken."""
    sizes = [1, 1]
    for side, axes in enumerate((layout.inputs, layout.outputs)):
        for axis in axes:
            sizes[side] *= x.shape[axis]
    # Neurons of a square kernel are its outputs.
    return layout.inputs if sizes[1] >= sizes[0] else layout.outputs


def scale_by_neuron(
    b2: float = 0.95, layouts: Layouts = None
) -> optax.GradientTransformation:
    """Divides the direction of each neuron by its root mean square over time.

        S <- b2 S + (1 - b2) mean(O^2)   over the shorter side
        O <- O / sqrt(S), rescaled to the norm that it had

    State and statistics are in float32 at least.

    Args:
      b2: Decay of the average of mean squares.
      layouts: A tree of layouts like the parameters.

    Returns:
      The gradient transformation, for kernels alone.
    """

    def init(params):
        def start(layout, x):
            sizes = [
                1 if a in _reduced(layout, x) else n for a, n in enumerate(x.shape)
            ]
            return jnp.zeros(sizes, wide(jnp.zeros((), x.dtype)).dtype)

        return NorMuonState(map_leaves(start, layouts, params))

    def update(updates, state, params=None):
        del params

        def one(layout, u, squares):
            o = wide(u)
            own = layout.own_axes(o)
            mean = jnp.mean(jnp.square(o), _reduced(layout, o), keepdims=True)
            squares = b2 * squares + (1 - b2) * mean
            scaled = o * jax.lax.rsqrt(jnp.maximum(squares, 1e-10))

            def size(x):
                return jnp.sqrt(jnp.sum(jnp.square(x), own, keepdims=True))

            scaled = scaled * size(o) / jnp.maximum(size(scaled), 1e-10)
            return scaled.astype(u.dtype), squares

        pairs = map_leaves(one, layouts, updates, state.squares)
        scaled, squares = split(pairs, 2)
        return scaled, NorMuonState(squares)

    return optax.GradientTransformation(init, update)


def add_cautious_decay(weight_decay: float) -> optax.GradientTransformation:
    """Adds decay where it points the way of the update, and only there."""

    def update(updates, params):
        def one(u, p):
            return u + weight_decay * jnp.where(u * p >= 0, p, jnp.zeros_like(p))

        return jax.tree.map(one, updates, params)

    return optax.stateless(update)


@bounded
def normuon(
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: float = 0.0,
    layouts: Layouts = None,
    beta: Momentum = 0.95,
    b2: Momentum = 0.95,
    nesterov: bool = True,
    scale: Scale = "moonlight",
    ns_coeffs: str | tuple = "polar_express",
    ns_steps: Repeats = 5,
    products: Products = "bfloat16",
    is_cautious: bool = True,
    others: registry.Spec = "adamw",
    others_scale: NonNegative = 1.0,
) -> optax.GradientTransformationExtraArgs:
    """Muon's direction with every neuron's share of it evened out over time.

    After the orthogonalization each neuron (row or column of the longer side) is
    divided by the root of its average mean square, and the whole is rescaled to the
    norm that it had. Decay is cautious: an entry decays only where its update already
    pulls it to zero. All parameters but kernels are AdamW's.

    Reference: Li et al., 2025, https://arxiv.org/abs/2510.05491, Algorithm 1;
    cautious decay: Chen et al., 2025, https://arxiv.org/abs/2510.12402. The evening
    out equals modded-nanogpt's to 1e-5; the whole step was not compared. There
    the decay is multiplied by the square of the learning rate; here by the rate.

    Args:
      learning_rate: Step size or schedule.
      weight_decay: Decay, multiplied by the learning rate.
      layouts: A tree of layouts like the parameters; None takes leaves of two axes
        for kernels.
      beta: Decay of the sum of gradients.
      b2: Decay of the average of mean squares.
      nesterov: Whether to look one step ahead.
      scale: "moonlight", "keller" or "spectral"; see `muon`.
      ns_coeffs: Polynomials: "keller", "polar_express", or rows (a, b, c).
      ns_steps: Number of polynomials that are applied.
      products: Dtype of the products: "bfloat16" or "float32".
      is_cautious: Whether decay is cautious.
      others: Spec of the optimizer of all other parameters.
      others_scale: Factor on its learning rate.

    Returns:
      The gradient transformation.

    Raises:
      ReslabError: On an unknown scale or products, or a table that is too long.
    """
    parts = [
        scale_by_muon(beta, nesterov, scale, ns_coeffs, ns_steps, products, layouts),
        scale_by_neuron(b2, layouts),
    ]
    kernel_decay = weight_decay
    if is_cautious and weight_decay:
        parts.append(add_cautious_decay(weight_decay))
        kernel_decay = 0.0
    return with_others(
        optax.chain(*parts),
        learning_rate,
        weight_decay,
        layouts,
        kernel_decay=kernel_decay,
        others=others,
        others_scale=others_scale,
    )


build = normuon
