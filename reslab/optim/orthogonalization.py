"""The nearest orthogonal matrix, by odd polynomials of matrix products.

    X <- G / ||G||;  repeatedly  X <- a X + (b A + c A A) X  with A = X X'

Each step applies a x + b x^3 + c x^5 to every singular value and drives it to one.
Tables of (a, b, c) say which polynomial each step uses.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from reslab.core.errors import ReslabError, nearest
from reslab.optim.base.leaves import Layouts, map_leaves, resolve, wide
from reslab.optim.base.together import by_shape, is_turned

Coefficients = tuple[tuple[float, float, float], ...]

# Keller Jordan's quintic: the steepest at 0 that stays within about 0.3 of one.
KELLER = (3.4445, -4.7750, 2.0315)
TABLES = ("keller", "polar_express")


@functools.cache
def polar_express(
    steps: int,
    lower: float = 1e-3,
    safety: float = 1e-2,
    cushion: float = 0.02,
) -> Coefficients:
    """The best quintic for each step, when singular values start in [lower, 1].

    Each is the odd polynomial of degree 5 that is nearest to one on the interval
    which the steps before it leave, by Remez's exchange. All but the last are
    slowed a little, p(x / (1 + safety)), against rounding above the interval.

    Reference: Amsel et al., 2025, https://arxiv.org/abs/2505.16932, Algorithm 1 and
    Section 4.4. The coefficients equal those of the authors' code to 1e-10 until the
    interval is narrower than a hundredth, after five steps or more: from there on
    rounding decides them (the system's condition is 1e11), and what they do is the
    same to 1e-8.

    Args:
      steps: Number of polynomials.
      lower: Smallest singular value that is to be raised to one.
      safety: How much each polynomial but the last is stretched.
      cushion: The interval is at least this fraction of its upper end.

    Returns:
      The coefficients (a, b, c) of each step.
    """
    upper, table = 1.0, []
    for step in range(steps):
        low = max(lower, cushion * upper)
        a, b, c = _best_quintic(low, upper)
        if cushion * upper > lower:
            # Centred around one for the true interval, not for the cushioned one.
            at = [a * x + b * x**3 + c * x**5 for x in (lower, upper)]
            a, b, c = (2 * value / sum(at) for value in (a, b, c))
        if step < steps - 1:
            stretch = 1 + safety
            a, b, c = a / stretch, b / stretch**3, c / stretch**5
        table.append((float(a), float(b), float(c)))
        lower = a * lower + b * lower**3 + c * lower**5
        upper = 2 - lower
    return tuple(table)


def _best_quintic(low: float, high: float) -> tuple[float, float, float]:
    """The odd quintic nearest to one on [low, high]."""
    if low / high >= 1 - 5e-6:
        # The exchange is ill-conditioned: three zeros of the error coincide.
        return 15 / 8 / high, -10 / 8 / high**3, 3 / 8 / high**5
    inner = [(3 * low + high) / 4, (low + 3 * high) / 4]
    error, before = math.inf, None
    a = b = c = 0.0
    while before is None or abs(before - error) > 1e-15:
        before = error
        points = np.array([low, *inner, high])
        system = np.stack(
            [points, points**3, points**5, np.array([1.0, -1.0, 1.0, -1.0])], axis=1
        )
        a, b, c, error = np.linalg.solve(system, np.ones(4))
        root = math.sqrt(9 * b**2 - 20 * a * c)
        inner = [math.sqrt((-3 * b + sign * root) / (10 * c)) for sign in (-1, 1)]
    return a, b, c


def coefficients(table: str | Sequence[Sequence[float]], steps: int) -> Coefficients:
    """The coefficients of every step.

    Args:
      table: "keller", "polar_express", or rows (a, b, c); the last one is
        repeated.
      steps: Number of steps.

    Returns:
      One row for each step.

    Raises:
      ReslabError: On an unknown table, no steps, or more rows than steps.
    """
    where = "orthogonalization"
    if steps < 1:
        raise ReslabError(f"{where}: steps", expected="at least 1", got=str(steps))
    if table == "keller":
        return (KELLER,) * steps
    if table == "polar_express":
        return polar_express(steps)
    if isinstance(table, str):
        raise ReslabError(
            f"{where}: unknown table {table!r}", hint=nearest(table, TABLES)
        )
    rows: Any = tuple(tuple(row) for row in table)
    if not rows or any(len(row) != 3 for row in rows):
        raise ReslabError(f"{where}: table", expected="rows (a, b, c)", got=repr(table))
    if len(rows) > steps:
        raise ReslabError(
            f"{where}: table",
            expected=f"at most one row per step ({steps})",
            got=str(len(rows)),
        )
    return rows + (rows[-1],) * (steps - len(rows))


def orthogonalized(
    matrices: jax.Array,
    table: Coefficients,
    *,
    dtype: Any = jnp.float32,
    margin: float = 1.0,
    steps: jax.Array | None = None,
) -> jax.Array:
    """Drives the singular values of matrices to one.

    Args:
      matrices: Of shape (..., m, n). A tall one costs as much as its transpose.
      table: Coefficients of each step.
      dtype: Dtype of the products. Norms, and sums with the coefficients, are taken
        in float32.
      margin: The Frobenius norm is multiplied by this before it divides.
      steps: Number of the last steps that each matrix takes (...,); None is all.

    Returns:
      The matrices, in `dtype`. A matrix of zeros stays zero.

    Raises:
      AssertionError: If there are fewer than two axes.
    """
    chex.assert_shape(matrices, (..., None, None))
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = jnp.swapaxes(matrices, -1, -2) if is_tall else matrices
    exact = wide(x)
    size = jnp.sqrt(jnp.sum(jnp.square(exact), (-2, -1), keepdims=True))
    x = (exact / (margin * size + 1e-7)).astype(dtype)
    for index, (a, b, c) in enumerate(table):
        square = x @ jnp.swapaxes(x, -1, -2)
        # Coefficients stay in float32: rounded to bfloat16 with the products, they
        # would give another polynomial.
        near = (b * wide(square) + c * wide(square @ square)).astype(dtype)
        y = (a * wide(x) + wide(near @ x)).astype(dtype)
        if steps is None:
            x = y
        else:
            is_taken = (index >= len(table) - steps)[..., None, None]
            x = jnp.where(is_taken, y, x)
    return jnp.swapaxes(x, -1, -2) if is_tall else x


def orthogonalize_leaves(
    tree: Any,
    layouts: Layouts,
    table: Coefficients,
    *,
    dtype: Any = jnp.float32,
    margin: float = 1.0,
    steps: Any = None,
) -> Any:
    """Orthogonalizes all kernels of a tree, each layer's independently.

    Those of one shape are taken together, and over a mesh every matrix is multiplied
    on one device, not on all; see `by_shape`.

    Args:
      tree: Kernels; all must be matrices by their layouts.
      layouts: A tree of layouts.
      table: Coefficients of each step.
      dtype: Dtype of the products.
      margin: As in `orthogonalized`.
      steps: A tree with the number of steps of each stacked matrix, or None.

    Returns:
      A tree like the first, in `dtype`.
    """
    layouts = resolve(layouts, tree)

    def together(matrices, each=None):
        return orthogonalized(matrices, table, dtype=dtype, margin=margin, steps=each)

    exact = map_leaves(lambda _, x: x.astype(dtype), layouts, tree)
    found = by_shape(together, exact, layouts, *(() if steps is None else (steps,)))

    def back(layout, leaf, x):
        matrices = jnp.swapaxes(x, 1, 2) if is_turned(layout, leaf) else x
        return layout.from_matrices(matrices, leaf.shape)

    return map_leaves(back, layouts, tree, found)
