"""Muon with the number of Newton-Schulz steps chosen per layer by its spectrum."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from reslab.core import registry
from reslab.core.bounds import Count, Fraction, Momentum, NonNegative, bounded
from reslab.core.errors import ReslabError
from reslab.core.precision import statistics_dtype
from reslab.ops.spectra import singular_quantiles
from reslab.optim.base.leaves import Layouts, map_leaves, resolve, split, zeros
from reslab.optim.base.together import singular_values
from reslab.optim.muon import (
    ADAMW,
    Products,
    Scale,
    accumulated,
    directions,
    with_others,
)
from reslab.optim.orthogonalization import KELLER, coefficients

RENAMED = {"momentum": "beta", **ADAMW}

# Singular values that reach this level count as orthogonalized.
LEVEL = 0.68


class SpectralState(NamedTuple):
    """State of `scale_by_spectral`.

    Attributes:
      count: Number of steps so far.
      momentum: Sum of gradients.
      lowest: The quantile of the momentum's singular values over its Frobenius norm.
      iterations: Newton-Schulz steps of every kernel in every layer.
    """

    count: jax.Array
    momentum: Any
    lowest: Any
    iterations: Any


@functools.cache
def floors(most: int) -> tuple[float, ...]:
    """The smallest singular value that 1, 2, ... `most` steps raise to `LEVEL`.

    Of a matrix whose Frobenius norm is one, by Keller Jordan's quintic, on a grid of
    1% from 1e-7 on.
    """
    x = np.geomspace(1e-7, 1.0, 1600)
    start, found = x, []
    a, b, c = KELLER
    for _ in range(most):
        x = a * x + b * x**3 + c * x**5
        found.append(float(start[np.argmax(x >= LEVEL)]))
    return tuple(found)


def iterations_for(lowest: Any, least: int, most: int) -> Any:
    """The fewest steps that raise singular values `lowest` to the level.

    Args:
      lowest: Singular values over Frobenius norms, of any shape.
      least: Fewest steps.
      most: Most steps, taken where even they do not suffice.

    Returns:
      Numbers of steps, int32, of the same shape.
    """
    table = floors(most)
    enough = jnp.stack([lowest >= floor for floor in table])
    first = jnp.argmax(enough, axis=0) + 1
    needed = jnp.where(jnp.any(enough, axis=0), first, most)
    return jnp.clip(needed, least, most).astype(jnp.int32)


@bounded
def scale_by_spectral(
    beta: float = 0.95,
    nesterov: bool = False,
    scale: Scale = "moonlight",
    every: Count = 100,
    quantile: Fraction = 0.1,
    least: int = 3,
    most: int = 8,
    products: Products = "bfloat16",
    layouts: Layouts = None,
) -> optax.GradientTransformation:
    """Orthogonalizes momentum, with a number of steps per layer from its spectrum.

    Every `every` steps, inside the step (`lax.cond`), the singular values of each
    momentum are taken; the layer then takes the fewest steps that raise their
    `quantile` to 0.68. All layers of a stack run the number of products of the one that
    needs most could (`most`); what the others take is left as it was.

    Args:
      beta: Decay of the sum of gradients.
      nesterov: Whether to look one step ahead.
      scale: One of `muon`'s.
      every: Steps between two measurements.
      quantile: Quantile of the singular values that must be raised.
      least: Fewest steps.
      most: Most steps.
      products: Dtype of the products: "bfloat16" or "float32".
      layouts: A tree of layouts like the parameters.

    Returns:
      The gradient transformation, for kernels alone.

    Raises:
      ReslabError: On an interval below 1, or an empty range of steps.
    """
    if not 1 <= least <= most:
        raise ReslabError(
            "spectral: least", expected=f"1 to most ({most})", got=str(least)
        )
    rows = coefficients("keller", most)

    def one_each(value):
        def make(layout, p):
            sizes = [n if a in layout.stack else 1 for a, n in enumerate(p.shape)]
            dtype = statistics_dtype(p.dtype) if value is None else jnp.int32
            return jnp.full(sizes, value or 0, dtype)

        return make

    def init(params):
        return SpectralState(
            jnp.zeros((), jnp.int32),
            zeros(params),
            map_leaves(one_each(None), layouts, params),
            map_leaves(one_each(min(max(5, least), most)), layouts, params),
        )

    def update(updates, state, params=None):
        del params
        known = resolve(layouts, updates)
        sums = accumulated(beta, state.momentum, updates, known)

        def measure(old):
            del old

            def one(_, values, before):
                lowest = singular_quantiles(values, (quantile,))
                lowest = lowest.reshape(before.shape).astype(before.dtype)
                return lowest, iterations_for(lowest, least, most)

            values = singular_values(sums, known)
            return split(map_leaves(one, known, values, state.lowest), 2)

        lowest, iterations = jax.lax.cond(
            state.count % every == 0,
            measure,
            lambda old: old,
            (state.lowest, state.iterations),
        )
        ahead = accumulated(beta, sums, updates, known) if nesterov else sums
        moves = directions(
            ahead, updates, known, rows, scale, products, steps=iterations
        )
        return moves, SpectralState(state.count + 1, sums, lowest, iterations)

    return optax.GradientTransformation(init, update)


@bounded
def spectral(
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: float = 0.0,
    layouts: Layouts = None,
    beta: Momentum = 0.95,
    nesterov: bool = False,
    scale: Scale = "moonlight",
    every: Count = 100,
    quantile: Fraction = 0.1,
    least: Count = 3,
    most: Count = 8,
    products: Products = "bfloat16",
    others: registry.Spec = "adamw",
    others_scale: NonNegative = 1.0,
) -> optax.GradientTransformationExtraArgs:
    """Muon with Newton-Schulz steps chosen for every layer from its momentum.

    The probe `momentum_spectrum` shows the quantiles that the choice is made from.
    See `scale_by_spectral`; parameters that are no kernels are AdamW's, as in `muon`.

    Reference: Magakyan et al., 2026, https://arxiv.org/abs/2606.04058 (quantiles of
    the momentum's normalized singular values, without Nesterov's step, and steps by
    layer). Property only, no authors' code, and its five polynomials are not known
    here: the polynomial is Keller Jordan's, the choice by table is reslab's own. At
    sizes up to 4B parameters exact orthogonalization gains next to nothing
    (https://arxiv.org/abs/2606.00371).

    Args:
      learning_rate: Step size or schedule.
      weight_decay: Decay, multiplied by the learning rate.
      layouts: A tree of layouts like the parameters; None takes leaves of two axes
        for kernels.
      beta: Decay of the sum of gradients.
      nesterov: Whether to look one step ahead.
      scale: "moonlight", "keller" or "spectral"; see `muon`.
      every: Steps between two measurements.
      quantile: Quantile of the singular values that must be raised.
      least: Fewest steps.
      most: Most steps.
      products: Dtype of the products: "bfloat16" or "float32".
      others: Spec of the optimizer of all other parameters.
      others_scale: Factor on its learning rate.

    Returns:
      The gradient transformation.

    Raises:
      ReslabError: On an interval below 1, or an empty range of steps.
    """
    direction = scale_by_spectral(
        *(beta, nesterov, scale, every, quantile, least, most, products, layouts)
    )
    return with_others(
        direction,
        learning_rate,
        weight_decay,
        layouts,
        others=others,
        others_scale=others_scale,
    )


build = spectral
