"""Inverses of unit lower triangular matrices: one function, several methods."""

import functools

import jax
import jax.numpy as jnp

from reslab.core.errors import ReslabError, nearest
from reslab.ops.triangular_inverse import methods

METHODS = {
    "block": methods.block,
    "forward_substitution": methods.forward_substitution,
    "newton_schulz": methods.newton_schulz,
    "neumann": methods.neumann,
    "recursive": methods.recursive,
}
# Their errors grow with the powers of A; kept for comparison.
UNSTABLE = ("neumann", "recursive")


def triangular_inverse(
    matrices: jax.Array,
    *,
    method: str = "block",
    precision: jax.lax.Precision = jax.lax.Precision.HIGHEST,
    iterations: int = 0,
) -> jax.Array:
    """Computes (I + A)^-1 for strictly lower triangular matrices A.

    Products are rounded to the dtype of A. Every method has the gradient of the
    exact inverse, -X^T G X^T below the diagonal.

    Reference: Sobczyk et al., 2026, https://arxiv.org/abs/2605.21325.

    Args:
      matrices: A, shape (..., n, n); nothing on or above the diagonal is read as zero,
        so it must be zero.
      method: "forward_substitution" solves row after row; "block" does so in blocks
        of 16 and joins these by products; "newton_schulz" iterates, by products
        alone, and corrects its own errors. Unstable, for comparison: "neumann" sums
        powers of A, "recursive" does so in blocks of 16.
      precision: Of the products.
      iterations: Of "newton_schulz"; 0 chooses.

    Returns:
      The inverses, of the shape and dtype of A.

    Raises:
      ReslabError: If the method is unknown, or A is not square.

    >>> triangular_inverse(jnp.array([[0.0, 0.0], [0.5, 0.0]])).tolist()
    [[1.0, 0.0], [-0.5, 1.0]]
    """
    if method not in METHODS:
        raise ReslabError(
            f"triangular_inverse method {method!r}", hint=nearest(method, METHODS)
        )
    if matrices.ndim < 2 or matrices.shape[-1] != matrices.shape[-2]:
        raise ReslabError(
            "triangular_inverse: matrices",
            expected="(..., n, n)",
            got=str(matrices.shape),
        )
    return _inverse(method, precision, iterations, matrices)


def _product(precision, left, right):
    return jnp.einsum("...ij,...jk->...ik", left, right, precision=precision)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _inverse(method, precision, iterations, matrices):
    options = {"iterations": iterations} if method == "newton_schulz" else {}
    product = functools.partial(_product, precision)
    return METHODS[method](matrices, product, **options)


def _forward(method, precision, iterations, matrices):
    inverse = _inverse(method, precision, iterations, matrices)
    return inverse, inverse


def _backward(method, precision, iterations, inverse, cotangent):
    del method, iterations
    transposed = jnp.swapaxes(inverse, -1, -2)
    left = _product(precision, transposed, cotangent)
    return (jnp.tril(-_product(precision, left, transposed), -1),)


_inverse.defvjp(_forward, _backward)
