"""LLR: layers whose spectra have light tails learn faster (LLR, 2026)."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from reslab.core.bounds import Count, Fraction, NonNegative, Whole, bounded
from reslab.ops.spectra import Estimator, tail_exponents
from reslab.optim.base.leaves import Layouts, map_leaves, resolve, wide
from reslab.optim.base.together import singular_values
from reslab.optim.base.widened import widened
from reslab.optim.base.wrapping import scale_slices, wrapper

Map = Literal["linear", "sqrt", "log2", "sigmoid", "step"]


class HeavyTailState(NamedTuple):
    """State of `heavy_tail`.

    Attributes:
      count: Number of steps so far.
      changed: Step of the last change of the ratios.
      before: Ratios from which they go, of every parameter in every layer.
      ratios: Ratios to which they go.
      factors: Ratios of the last step.
      inner: State of the optimizer inside.
    """

    count: jax.Array
    changed: jax.Array
    before: Any
    ratios: Any
    factors: Any
    inner: Any


def rates(
    alphas: jax.Array, kind: Map, low: float, high: float, is_inverted: bool = False
) -> jax.Array:
    """Factors on the learning rate of matrices, by the exponents of their tails.

    linear   low + (high - low) (alpha - min) / (max - min)
    sqrt     n sqrt(alpha) / sum sqrt(alpha);  log2 in the same way
    sigmoid  2 / (1 + exp(-4 (alpha - mean) / deviation))
    step     low + (high - low) rank / n, of ranks from 0 up

    Inverted, the heaviest tail has the highest rate: "linear", "sigmoid" and "step"
    take -alpha in place of alpha, "sqrt" and "log2" are divided into one.
    """
    if is_inverted and kind in ("sqrt", "log2"):
        return 1 / rates(alphas, kind, low, high)
    alphas = -alphas if is_inverted else alphas
    if kind == "step":
        ranks = jnp.argsort(jnp.argsort(alphas, stable=True), stable=True)
        return low + (high - low) * ranks.astype(alphas.dtype) / alphas.size
    if kind == "linear":
        least, most = jnp.min(alphas), jnp.max(alphas)
        span = jnp.where(most > least, most - least, 1.0)
        return low + (high - low) * (alphas - least) / span
    if kind == "sigmoid":
        deviation = jnp.std(alphas)
        apart = (alphas - jnp.mean(alphas)) / jnp.where(deviation > 0, deviation, 1.0)
        return 2 / (1 + jnp.exp(-4 * apart))
    shares = jnp.sqrt(alphas) if kind == "sqrt" else jnp.log2(alphas)
    return alphas.size * shares / jnp.sum(shares)


def ratios_of(
    params: Any,
    layouts: Layouts,
    *,
    estimator: Estimator = "hill",
    kind: Map = "linear",
    low: float = 1.0,
    high: float = 5.0,
    least: int = 50,
    part: int = 2,
    is_inverted: bool = False,
) -> Any:
    """The factor on the learning rate of every parameter in every layer.

    Args:
      params: The parameters.
      layouts: A tree of layouts like them.
      estimator: How the exponents are fitted; see `reslab.ops.spectra`.
      kind: How a factor follows from the exponent; see `rates`.
      low: Factor of the heaviest tail, in "linear".
      high: Factor of the lightest tail, in "linear".
      least: Matrices with fewer eigenvalues keep the factor 1.
      part: The part of the eigenvalues below the tail, one in `part`, in "hill".
      is_inverted: Whether the heaviest tail has the highest rate.

    Returns:
      A tree of factors that broadcast against the parameters.
    """
    known = resolve(layouts, params)

    def fitting(layout, p):
        if layout.kind == "vector" or min(layout.as_matrices(p).shape[1:]) < least:
            return optax.MaskedNode()
        return wide(p)

    def exponents(_, values):
        return tail_exponents(jnp.flip(jnp.square(values), -1), estimator, part)

    values = singular_values(map_leaves(fitting, known, params), known)
    fitted = map_leaves(exponents, known, values)
    leaves, structure = jax.tree.flatten(fitted)
    if leaves:
        joined = jnp.concatenate(leaves)
        # The first and last kernels count as the lightest tail.
        most, is_end = jnp.max(joined), []
        flat = jax.tree.leaves(
            map_leaves(lambda lay, _: lay.kind != "matrix", known, fitted)
        )
        for leaf, end in zip(leaves, flat, strict=True):
            is_end += [end] * leaf.size
        joined = jnp.where(jnp.asarray(is_end), most, joined)
        found = rates(joined, kind, low, high, is_inverted)
        splits, begin = [], 0
        for leaf in leaves:
            splits.append(found[begin : begin + leaf.size])
            begin += leaf.size
        fitted = jax.tree.unflatten(structure, splits)

    def factor(layout, p, values):
        sizes = [n if a in layout.stack else 1 for a, n in enumerate(p.shape)]
        if isinstance(values, optax.MaskedNode):
            return jnp.ones(sizes, wide(p).dtype)
        return values.astype(wide(p).dtype).reshape(sizes)

    return map_leaves(factor, known, params, fitted)


@bounded
@wrapper("adamw")
def heavy_tail(
    inner: optax.GradientTransformation,
    *,
    layouts: Layouts = None,
    steps: int = 1,
    every: Count = 100,
    until: Fraction = 0.2,
    blend: Whole = 50,
    estimator: Estimator = "hill",
    kind: Map = "linear",
    low: NonNegative = 1.0,
    high: NonNegative = 5.0,
    least: Count = 50,
    part: Count = 2,
    is_inverted: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Scales the learning rate of each matrix by the tail of its spectrum.

    A matrix whose eigenvalues have a light tail (a large exponent alpha) has learned
    little, and gets up to `high` times the learning rate of the heaviest. Embedding
    and head count as the lightest; vectors and small matrices keep the rate. The
    exponents are taken of the weights, every `every` steps in the first `until` of
    the run, inside the step (`lax.cond`); changes are blended in over `blend` steps.
    Decay is scaled with the rate.

    Reference: LLR, 2026, https://arxiv.org/abs/2605.22297. Exponents equal the
    authors' code to 2e-5, factors too. There a change leads from the current
    learning rate to the one that the schedule will have at the end of the blend;
    here the factors are blended, the same up to the schedule's fall meanwhile.

    Args:
      learning_rate: Step size or schedule.
      weight_decay: Decay, multiplied by the learning rate.
      layouts: A tree of layouts like the parameters; None takes leaves of two axes
        for kernels.
      steps: Length of the run.
      inner: Spec of the optimizer.
      every: Steps between two measurements.
      until: Fraction of the run after which the factors stay.
      blend: Steps over which a change is blended in; 0 is at once.
      estimator: "hill", "fixed_finger" or "goodness_of_fit".
      kind: "linear", "sqrt", "log2", "sigmoid" or "step".
      low: Factor of the heaviest tail, in "linear".
      high: Factor of the lightest tail, in "linear".
      least: Matrices with fewer eigenvalues keep the rate.
      part: The part of the eigenvalues below the tail, one in `part`, in "hill".
      is_inverted: Whether the heaviest tail has the highest rate, the authors'
        comparison.

    Returns:
      The gradient transformation.

    Raises:
      ReslabError: On an interval below 1 or an unknown choice.
    """
    around = optax.with_extra_args_support(inner)
    options = {
        "estimator": estimator,
        "kind": kind,
        "low": low,
        "high": high,
        "least": least,
        "part": part,
        "is_inverted": is_inverted,
    }

    def init(params):
        def ones(layout, p):
            sizes = [n if a in layout.stack else 1 for a, n in enumerate(p.shape)]
            return jnp.ones(sizes, wide(jnp.zeros((), p.dtype)).dtype)

        def start():
            return map_leaves(ones, layouts, params)

        zero = jnp.zeros((), jnp.int32)
        return HeavyTailState(
            zero, zero, start(), start(), start(), around.init(params)
        )

    def current(state):
        passed = (state.count - state.changed + 1) / max(blend, 1)
        weight = jnp.clip(passed.astype(jnp.float32), 0.0, 1.0)
        return jax.tree.map(
            lambda a, b: a + (b - a) * weight.astype(a.dtype),
            state.before,
            state.ratios,
        )

    def update(updates, state, params=None, **extra):
        known = resolve(layouts, updates)
        is_due = (state.count % every == 0) & (state.count <= until * steps)

        def measure(state):
            ratios = ratios_of(params, known, **options)
            return state._replace(
                before=current(state), ratios=ratios, changed=state.count
            )

        state = jax.lax.cond(is_due, measure, lambda s: s, state)
        moves, inner_state = around.update(updates, state.inner, params, **extra)
        factors = current(state)
        return scale_slices(factors, known, moves), state._replace(
            count=state.count + 1, factors=factors, inner=inner_state
        )

    return widened(optax.GradientTransformationExtraArgs(init, update))


build = heavy_tail
