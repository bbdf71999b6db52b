"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner (Vyas et al., 2024)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from reslab.core.bounds import Count, Epsilon, Momentum, Whole, bounded
from reslab.core.layout import Layout
from reslab.optim.base.leaves import (
    Layouts,
    Named,
    is_absent,
    map_leaves,
    resolve,
    split,
    wide,
)
from reslab.optim.base.widened import widened

ABSENT = optax.MaskedNode()


class SoapState(NamedTuple):
    """State of `scale_by_soap`.

    Attributes:
      count: Number of updates so far, the first one included.
      mean: Mean of gradients, in the bases.
      squares: Mean of squared gradients, in the bases.
      sides: For inputs and outputs of every kernel, the average of G G' or G' G.
      bases: Their eigenvectors, the largest first.
    """

    count: jax.Array
    mean: Any
    squares: Any
    sides: tuple[Any, Any]
    bases: tuple[Any, Any]


def _outer(matrices: jax.Array, side: int) -> jax.Array:
    turned = jnp.swapaxes(matrices, 1, 2)
    return matrices @ turned if side == 0 else turned @ matrices


def _into(bases: tuple[Any, Any], x: jax.Array) -> jax.Array:
    left, right = bases
    x = x if is_absent(left) else jnp.swapaxes(left, 1, 2) @ x
    return x if is_absent(right) else x @ right


def _out_of(bases: tuple[Any, Any], x: jax.Array) -> jax.Array:
    left, right = bases
    x = x if is_absent(left) else left @ x
    return x if is_absent(right) else x @ jnp.swapaxes(right, 1, 2)


def _eigenvectors(side: jax.Array) -> jax.Array:
    """Eigenvectors of symmetric matrices, the largest eigenvalue first."""
    return jnp.flip(jnp.linalg.eigh(side)[1], -1)


def _orthonormal(side: jax.Array) -> jax.Array:
    """The Q factors of matrices (stack, n, n)."""

    def one_by_one(side):
        # On a CPU, several batched decompositions in one program may deadlock on each
        # other's threads (jaxlib 0.10.2, two cores).
        return jax.lax.map(lambda matrix: jnp.linalg.qr(matrix)[0], side)

    def together(side):
        return jnp.linalg.qr(side)[0]

    return jax.lax.platform_dependent(side, cpu=one_by_one, default=together)


def _refreshed(
    side: jax.Array, basis: jax.Array, squares: jax.Array, axis: int
) -> tuple[jax.Array, jax.Array]:
    """One power iteration; squares follow the order of the eigenvalues."""
    estimates = jnp.einsum("sji,sjk,ski->si", basis, side, basis)
    order = jnp.argsort(-estimates, axis=-1)
    basis = jnp.take_along_axis(basis, order[:, None, :], axis=2)
    at = order[:, :, None] if axis == 1 else order[:, None, :]
    squares = jnp.take_along_axis(squares, at, axis=axis)
    return _orthonormal(side @ basis), squares


@bounded
def scale_by_soap(
    b1: float = 0.95,
    b2: float = 0.95,
    epsilon: float = 1e-8,
    every: Count = 10,
    largest: int = 10_000,
    layouts: Layouts = None,
) -> optax.GradientTransformation:
    """Adam's direction, taken in slowly turning eigenbases.

        L <- b2 L + (1 - b2) G G';  R <- b2 R + (1 - b2) G' G
        N = Adam(Q_L' G Q_R);  direction = Q_L N Q_R'

    The first update only fills the averages and takes their eigenvectors; its
    direction is zero. Bases are refreshed by one power iteration and a QR
    decomposition `every` updates, inside the step (`lax.cond`). State and products
    are in float32 at least. Decompositions are not spread over devices.

    Args:
      b1: Decay of the mean of gradients.
      b2: Decay of the means of squares and of outer products.
      epsilon: Added to the root of the mean of squares.
      every: Updates between two refreshments.
      largest: Sides longer than this are not turned.
      layouts: A tree of layouts like the parameters.

    Returns:
      The gradient transformation.

    Raises:
      ReslabError: If the interval is below 1.
    """

    def side_of(layout: Layout, p: Any, side: int) -> Any:
        """Zeros for one side of a kernel; absent where it is not turned."""
        if layout.kind == "vector":
            return ABSENT
        shape = jax.eval_shape(layout.as_matrices, p).shape
        if shape[1 + side] > largest:
            return ABSENT
        axes = (layout.inputs, layout.outputs)[side]
        name = layout.names[axes[0]] if layout.names else None
        zeros = jnp.zeros((shape[0], shape[1 + side], shape[1 + side]), wide(p).dtype)
        return Named(zeros, (None, name, None))

    def init(params):
        def zeros(_, p):
            return jnp.zeros(p.shape, wide(p).dtype)

        def sides(side):
            return map_leaves(lambda lay, p: side_of(lay, p, side), layouts, params)

        return SoapState(
            jnp.zeros((), jnp.int32),
            map_leaves(zeros, layouts, params),
            map_leaves(zeros, layouts, params),
            (sides(0), sides(1)),
            (sides(0), sides(1)),
        )

    def update(updates, state, params=None):
        del params
        known = resolve(layouts, updates)
        step = state.count.astype(jnp.float32)  # The first update of Adam is zero.
        is_first = state.count == 0
        is_due = (state.count > 0) & (state.count % every == 0)
        correction = jnp.sqrt(1 - b2**step) / jnp.where(is_first, 1.0, 1 - b1**step)

        def one(layout, g, mean, squares, *state_of_sides):
            sides, bases = state_of_sides[:2], state_of_sides[2:]
            is_kernel = layout.kind != "vector"
            shape, dtype = g.shape, g.dtype
            g, view = wide(g), layout.as_matrices if is_kernel else (lambda x: x)
            g, mean, squares = view(g), view(mean), view(squares)
            turned = _into(bases, g) if is_kernel else g
            new_mean = b1 * mean + (1 - b1) * turned
            new_squares = b2 * squares + (1 - b2) * jnp.square(turned)
            # The first update leaves Adam's moments at zero.
            mean = jnp.where(is_first, mean, new_mean)
            squares = jnp.where(is_first, squares, new_squares)
            factor = correction.astype(g.dtype)
            direction = factor * mean / (jnp.sqrt(squares) + epsilon)
            if is_kernel:
                direction = _out_of(bases, direction)
                sides = tuple(
                    s if is_absent(s) else b2 * s + (1 - b2) * _outer(g, index)
                    for index, s in enumerate(sides)
                )

                def keep(mean, squares, bases):
                    return mean, squares, bases

                def start(mean, squares, bases):
                    bases = tuple(
                        b if is_absent(b) else _eigenvectors(s)
                        for s, b in zip(sides, bases, strict=True)
                    )
                    return mean, squares, bases

                def refresh(mean, squares, bases):
                    mean, found = _out_of(bases, mean), []
                    for axis, (s, b) in enumerate(zip(sides, bases, strict=True), 1):
                        if not is_absent(b):
                            b, squares = _refreshed(s, b, squares, axis)
                        found.append(b)
                    return _into(tuple(found), mean), squares, tuple(found)

                branch = jnp.where(is_first, 1, jnp.where(is_due, 2, 0))
                mean, squares, bases = jax.lax.switch(
                    branch, (keep, start, refresh), mean, squares, tuple(bases)
                )
                direction, mean, squares = (
                    layout.from_matrices(x, shape) for x in (direction, mean, squares)
                )
            return direction.astype(dtype), mean, squares, *sides, *bases

        results = map_leaves(
            one, known, updates, state.mean, state.squares, *state.sides, *state.bases
        )
        directions, mean, squares, left, right, q_left, q_right = split(results, 7)
        new = SoapState(
            state.count + 1, mean, squares, (left, right), (q_left, q_right)
        )
        return directions, new

    return optax.GradientTransformation(init, update)


@bounded
def soap(
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: float = 0.0,
    layouts: Layouts = None,
    b1: Momentum = 0.95,
    b2: Momentum = 0.95,
    epsilon: Epsilon = 1e-8,
    every: Count = 10,
    largest: Whole = 10_000,
) -> optax.GradientTransformation:
    """Adam in the slowly turning eigenbasis of each kernel's gradients.

    Vectors are plain Adam's. The very first update moves nothing, decay included: it
    fills the averages. See `scale_by_soap`.

    Reference: Vyas et al., 2024, https://arxiv.org/abs/2409.11321, Algorithm 3. Six
    steps equal the authors' code to 1e-5 in float32, for square kernels turned on
    both sides, rectangular ones turned on one, and vectors; of rectangular ones
    turned on both sides the null space is LAPACK's choice, and nothing was compared.
    Their code decays after the step and so the moved weights; here as there.

    Args:
      learning_rate: Step size or schedule.
      weight_decay: Decay, multiplied by the learning rate.
      layouts: A tree of layouts like the parameters; None takes leaves of two axes
        for kernels.
      b1: Decay of the mean of gradients.
      b2: Decay of the means of squares and of outer products.
      epsilon: Added to the root of the mean of squares.
      every: Steps between two refreshments of the bases.
      largest: Sides longer than this are not turned.

    Returns:
      The gradient transformation.

    Raises:
      ReslabError: If the interval is below 1.
    """
    inner = scale_by_soap(b1, b2, epsilon, every, largest, layouts)

    def update(updates, state, params=None):
        lr = learning_rate(state.count) if callable(learning_rate) else learning_rate
        # An update that moves nothing does not decay either.
        shrink = jnp.where(state.count > 0, lr * weight_decay, 0.0)
        directions, state = inner.update(updates, state)

        def one(_, u, p):
            kept = (1 - shrink).astype(u.dtype)
            return kept * (p - jnp.asarray(lr, u.dtype) * u) - p

        return map_leaves(one, layouts, directions, params), state

    return widened(optax.GradientTransformation(inner.init, update))


build = soap
