"""LANTON: layers with noisy gradients learn slower (2025)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from reslab.core.bounds import Count, Momentum, Positive, bounded
from reslab.core.layout import Layout
from reslab.core.precision import statistics_dtype
from reslab.optim.base.leaves import Layouts, map_leaves, norm, resolve, wide, zeros
from reslab.optim.base.widened import widened
from reslab.optim.base.wrapping import scale_slices, wrapper
from reslab.optim.muon import size_factor
from reslab.optim.orthogonalization import orthogonalize_leaves, polar_express


class NoiseState(NamedTuple):
    """State of `noise_adaptive_muon`.

    Attributes:
      count: Number of steps so far.
      before: The last gradient.
      noise: Average of the squared dual norm of the gradient's change, of every
        parameter in every layer.
      factors: Factors on the learning rate in the last step.
      inner: State of the optimizer inside.
    """

    count: jax.Array
    before: Any
    noise: Any
    factors: Any
    inner: Any


def dual_norms(tree: Any, layouts: Layouts) -> Any:
    """The norm of gradients that is dual to how each kind of parameter is measured.

        kernels           sqrt(out / in) nuclear norm, as <D, orthogonalized(D)>
        embedding, head   sum of absolute values
        vectors           sqrt(size) Euclidean norm

    Args:
      tree: Gradients, or differences of them.
      layouts: A tree of layouts like them.

    Returns:
      A tree of norms of each stacked parameter that broadcast against it.
    """
    known = resolve(layouts, tree)
    kernels = jax.tree.map(
        lambda layout, x: (
            x
            if not isinstance(x, optax.MaskedNode) and layout.kind == "matrix"
            else optax.MaskedNode()
        ),
        known,
        tree,
    )
    polar = orthogonalize_leaves(
        map_leaves(lambda _, x: wide(x), known, kernels),
        known,
        polar_express(6),
        margin=1.01,
    )

    def one(layout: Layout, x, direction):
        x = wide(x)
        own = layout.own_axes(x)
        if layout.kind == "matrix":
            product = x * direction.astype(x.dtype)
            nuclear = jnp.sum(product, own, keepdims=True)
            return size_factor(layout, x.shape, "spectral") * nuclear
        if layout.kind == "vector":
            size = 1
            for axis in own:
                size *= x.shape[axis]
            return size**0.5 * norm(layout, x)
        return jnp.sum(jnp.abs(x), own, keepdims=True)

    return map_leaves(one, known, tree, polar)


def noise_ratios(noise: Any, layouts: Layouts, alpha: float) -> Any:
    """sqrt(a / largest a of the kind), with a = alpha / sqrt(alpha^2 + noise)."""
    known = resolve(layouts, noise)
    kept = map_leaves(lambda _, h: alpha / jnp.sqrt(alpha**2 + h), known, noise)
    largest: dict[str, Any] = {}

    def collect(layout, a):
        kind = "table" if layout.kind in ("embedding", "head") else layout.kind
        found = jnp.max(a)
        largest[kind] = jnp.maximum(largest[kind], found) if kind in largest else found
        return kind

    kinds = map_leaves(collect, known, kept)
    return map_leaves(
        lambda _, a, kind: jnp.sqrt(a / largest[kind]), known, kept, kinds
    )


@bounded
@wrapper("muon")
def noise_adaptive_muon(
    inner: optax.GradientTransformation,
    *,
    layouts: Layouts = None,
    alpha: Positive = 1.0,
    b2: Momentum = 0.9,
    every: Count = 1,
) -> optax.GradientTransformationExtraArgs:
    """Slows the layers whose gradients change most from step to step.

        H <- b2 H + (1 - b2) ||G_t - G_(t-1)||_dual^2;  a = alpha / sqrt(alpha^2 + H)
        lr of a layer = lr sqrt(a / max a)

    The maximum is over the parameters of a kind (kernels; embedding and head;
    vectors), so that the quietest of each learns at the full rate; see `dual_norms`
    for how noise is measured. State: one more gradient, in float32 at least, and a
    number for every parameter in every layer. Kernels are orthogonalized twice in
    each step that measures.

    Reference: LANTON, 2025, https://arxiv.org/abs/2510.14009, Algorithm 1, with the
    last gradient in place of a second one. Property only, no authors' code; alpha must
    be on the scale of sqrt(H), and its default is a guess. AdamW moves embedding, head
    and vectors, slowed by their noise; `inner="muon(others='norm_ball')"` moves them
    as the paper does, by signs and by normalized momentum.

    Args:
      learning_rate: Step size or schedule.
      weight_decay: Decay, multiplied by the learning rate.
      layouts: A tree of layouts like the parameters; None takes leaves of two axes
        for kernels.
      inner: Spec of the optimizer.
      alpha: Noise, as a norm, from which on a layer is slowed.
      b2: Decay of the average of squared changes.
      every: Steps between two measurements.

    Returns:
      The gradient transformation.

    Raises:
      ReslabError: If the interval is below 1 or alpha not positive.
    """
    around = optax.with_extra_args_support(inner)

    def init(params):
        def start(value):
            def one(layout, p):
                sizes = [n if a in layout.stack else 1 for a, n in enumerate(p.shape)]
                return jnp.full(sizes, value, statistics_dtype(p.dtype))

            return map_leaves(one, layouts, params)

        return NoiseState(
            jnp.zeros((), jnp.int32),
            zeros(params),
            start(0.0),
            start(1.0),
            around.init(params),
        )

    def update(updates, state, params=None, **extra):
        known = resolve(layouts, updates)
        gradients = map_leaves(lambda _, g: wide(g), known, updates)

        def listen(noise):
            change = map_leaves(lambda _, g, b: g - b, known, gradients, state.before)
            return map_leaves(
                lambda _, h, d: b2 * h + (1 - b2) * jnp.square(d),
                known,
                noise,
                dual_norms(change, known),
            )

        # The first gradient has no predecessor.
        is_due = (state.count > 0) & (state.count % every == 0)
        noise = jax.lax.cond(is_due, listen, lambda h: h, state.noise)
        moves, inner_state = around.update(updates, state.inner, params, **extra)
        factors = noise_ratios(noise, known, alpha)
        return scale_slices(factors, known, moves), NoiseState(
            state.count + 1, gradients, noise, factors, inner_state
        )

    return widened(optax.GradientTransformationExtraArgs(init, update))


build = noise_adaptive_muon
