"""NaP: kernels stay as large as they began (Lyle et al., 2024)."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from reslab.core.bounds import Count, Real, bounded
from reslab.core.layout import Layout
from reslab.core.trees import is_box, named_leaves, path_name, unbox
from reslab.optim.base.leaves import Layouts, map_leaves, norm, resolve, wide
from reslab.optim.base.widened import widened
from reslab.optim.base.wrapping import wrapper


class ProjectionState(NamedTuple):
    """State of `normalize_and_project`.

    Attributes:
      count: Number of steps so far.
      norms: The initial norm of every kernel in every layer, and of the gains and
        biases of every norm where they are projected.
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
    gains: Literal["free", "projected", "frozen"] = "free",
    gain_offset: Real = 1.0,
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
      gains: Whether gains and biases of norms are "free", "projected" or "frozen".
      gain_offset: Added by norms to a gain as it is stored; 0 for those with
        `is_gain_offset=False`.

    Returns:
      The gradient transformation.

    Raises:
      ReslabError: If the interval is below 1.
    """
    around = optax.with_extra_args_support(inner)

    def kernel_norm(layout, p):
        return norm(layout, p) if layout.kind == "matrix" else optax.MaskedNode()

    def init(params):
        names = names_of(params)
        joint = joint_norms(params, layouts, gain_offset)

        def first(layout, p, name):
            if gains == "projected" and name.rpartition("/")[2] == "gain":
                return joint[name.rpartition("/")[0]]
            return kernel_norm(layout, p)

        norms = map_leaves(first, layouts, params, names)
        return ProjectionState(jnp.zeros((), jnp.int32), norms, around.init(params))

    def update(updates, state, params=None, **extra):
        known = resolve(layouts, updates)
        moves, inner_state = around.update(updates, state.inner, params, **extra)
        is_due = (state.count + 1) % every == 0
        names = names_of(params)
        factors = {}
        if gains == "projected":
            moved = jax.tree.map(lambda p, u: wide(p) + wide(u), params, moves)
            found = joint_norms(moved, known, gain_offset)
            wanted = named_leaves(unbox(state.norms))
            factors = {
                parent: jnp.where(size > 0, wanted[_joined(parent, "gain")] / size, 1.0)
                for parent, size in found.items()
            }
        norms_of_model = joint_parents(params)

        def one(layout, u, p, wanted, name):
            parent, _, last = name.rpartition("/")
            is_gain = parent in norms_of_model and last in ("gain", "bias")
            if is_gain and gains == "frozen":
                return jnp.zeros_like(u)
            moved = wide(p) + wide(u)
            if is_gain and gains == "projected":
                offset = gain_offset if last == "gain" else 0.0
                projected = (moved + offset) * factors[parent] - offset
            elif layout.kind == "matrix":
                size = norm(layout, moved)
                safe = jnp.where(size > 0, size, 1.0)
                projected = moved * jnp.where(size > 0, wanted / safe, 1.0)
            else:
                return u
            return jnp.where(is_due, (projected - wide(p)).astype(u.dtype), u)

        projected = map_leaves(one, known, moves, params, state.norms, names)
        return projected, ProjectionState(state.count + 1, state.norms, inner_state)

    return widened(optax.GradientTransformationExtraArgs(init, update))


def names_of(tree: Any) -> Any:
    """The path of every leaf, in its place."""

    def name(path, leaf):
        del leaf
        return path_name(path)

    return jax.tree_util.tree_map_with_path(name, tree, is_leaf=is_box)


def joint_parents(tree: Any) -> frozenset[str]:
    """Paths of the modules that have a gain for each feature."""
    return frozenset(
        name.rpartition("/")[0]
        for name in named_leaves(unbox(tree))
        if name.rpartition("/")[2] == "gain"
    )


def joint_norms(tree: Any, layouts: Layouts, offset: float) -> Mapping[str, jax.Array]:
    """Norms of the gain and bias of every norm together, by its path.

    Args:
      tree: Parameters.
      layouts: Their layouts, or None.
      offset: Added to every gain.
    """
    leaves = named_leaves(unbox(tree))
    known = named_leaves(resolve(layouts, tree))
    found = {}
    for parent in joint_parents(tree):
        name = _joined(parent, "gain")
        layout: Layout = known[name]
        total = jnp.square(norm(layout, wide(leaves[name]) + offset))
        bias = leaves.get(_joined(parent, "bias"))
        if bias is not None:
            total = total + jnp.square(norm(layout, bias))
        found[parent] = jnp.sqrt(total)
    return found


def _joined(parent: str, name: str) -> str:
    return f"{parent}/{name}" if parent else name


build = normalize_and_project
