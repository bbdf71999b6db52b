"""Pure functions that measure how heavy the tail of a matrix's spectrum is.

Eigenvalues are those of W' W, the squares of W's singular values. Their largest ones
are fitted by a power law, density ~ e^-alpha; a small alpha is a heavy tail.
"""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from reslab.core.bounds import Count, bounded
from reslab.core.platform import platform

Estimator = Literal["hill", "fixed_finger", "goodness_of_fit"]
BINS = 100


def singular_values(matrices: jax.Array) -> jax.Array:
    """The singular values of matrices (..., m, n), descending; (..., min(m, n)).

    On a TPU by `bisected_singular_values`: the decomposition that JAX has there is
    compiled for minutes, each time that it is used.
    """
    if platform() != "tpu":
        return jnp.linalg.svd(matrices, compute_uv=False)
    # One after another: in parallel, the compiler pads them to 128.
    flat = matrices.reshape(-1, *matrices.shape[-2:])
    found = jax.lax.map(bisected_singular_values, flat)
    return found.reshape(*matrices.shape[:-2], -1)


def bisected_singular_values(matrix: jax.Array) -> jax.Array:
    """Singular values (min(m, n),), descending, without any vectors.

    The matrix B = U' A V with two diagonals d and e, by reflections, has the singular
    values of A; they are the upper half of the eigenvalues of the symmetric
    tridiagonal matrix with zeros on its diagonal and d_1, e_1, d_2, e_2, ... beside it,
    which are found by bisection. Small ones are as exact as the largest times the
    rounding of the dtype, which squares (A' A) would not give.

    Reference: Golub & Kahan, 1965, https://doi.org/10.1137/0702016.

    Args:
      matrix: Of shape (m, n), float32 or float64.
    """
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    count = tall.shape[1]
    size = jnp.sqrt(jnp.sum(jnp.square(tall)))
    scaled = tall / jnp.where(size > 0, size, 1.0)

    def reflect(x, index):
        """I - b v v' leaves of x one entry, and its value."""
        first = x[index]
        value = -jnp.where(first < 0, -1.0, 1.0) * jnp.sqrt(jnp.sum(jnp.square(x)))
        v = x.at[index].add(-value)
        squares = jnp.sum(jnp.square(v))
        # An all-zero column needs no reflection.
        return v, jnp.where(squares > 0, 2 / squares, 0.0), value

    def step(k, carry):
        # Elementwise products: matrix products are rounded to bfloat16 on a TPU.
        a, beside = carry
        column = jnp.where(jnp.arange(a.shape[0]) >= k, a[:, k], 0)
        v, b, diagonal = reflect(column, k)
        a = a - (b * v)[:, None] * jnp.sum(v[:, None] * a, 0, keepdims=True)
        row = jnp.where(jnp.arange(count) > k, a[k], 0)
        w, c, above = reflect(row, jnp.minimum(k + 1, count - 1))
        a = a - jnp.sum(a * w[None], 1, keepdims=True) * (c * w)[None]
        return a, beside.at[2 * k].set(diagonal).at[2 * k + 1].set(above)

    start = scaled, jnp.zeros(2 * count, scaled.dtype)
    _, beside = jax.lax.fori_loop(0, count, step, start)
    # The bisection divides by these values; a zero would give NaN.
    beside = jnp.maximum(jnp.abs(beside[:-1]), jnp.finfo(scaled.dtype).eps ** 2)
    found = jax.scipy.linalg.eigh_tridiagonal(
        jnp.zeros(2 * count, scaled.dtype),
        beside,
        eigvals_only=True,
        select="i",
        select_range=(count, 2 * count - 1),
    )
    return jnp.flip(jnp.maximum(found, 0.0)) * size


def eigenvalues(matrices: jax.Array) -> jax.Array:
    """The eigenvalues of W' W for matrices (..., m, n), ascending.

    Returns:
      The smaller side's number of them, (..., min(m, n)).
    """
    return jnp.flip(jnp.square(singular_values(matrices)), -1)


def spectrum_quantiles(matrices: jax.Array, quantiles: Sequence[float]) -> jax.Array:
    """Quantiles of the singular values over the Frobenius norm.

    Args:
      matrices: Of shape (stacked, m, n).
      quantiles: Fractions.

    Returns:
      Of shape (stacked, quantiles); 0 for a matrix of zeros.
    """
    return singular_quantiles(singular_values(matrices), quantiles)


def singular_quantiles(values: jax.Array, quantiles: Sequence[float]) -> jax.Array:
    """The same, of singular values (stacked, count) that are known."""
    size = jnp.sqrt(jnp.sum(jnp.square(values), -1, keepdims=True))
    share = values / jnp.where(size > 0, size, 1.0)
    return jnp.quantile(share, jnp.asarray(quantiles, share.dtype), axis=-1).T


@bounded
def tail_exponents(
    values: jax.Array, estimator: Estimator = "hill", part: Count = 2
) -> jax.Array:
    """The exponent of a power law fitted to the largest eigenvalues.

        alpha = 1 + n / sum_(j >= i) ln(e_j / e_i),  n = N - i

    "hill" begins the tail at i = N / part, the median by default. "goodness_of_fit"
    takes the beginning with the smallest distance of Kolmogorov and Smirnov, out of
    all; "fixed_finger" out of those near the peak of the histogram of log10 e.

    Reference: Clauset et al., 2009, https://arxiv.org/abs/0706.1062, Eq. 3.1;
    Hill, 1975; the three choices: Martin & Mahoney, 2021,
    https://arxiv.org/abs/1810.01075, Yang et al., 2023,
    https://arxiv.org/abs/2202.02842 and Zhou et al., 2023,
    https://arxiv.org/abs/2312.00359. All three equal the code of the layer-wise
    learning rates to 2e-5, including its lower end of the peak, which is a logarithm
    where the upper one is not.

    Args:
      values: Eigenvalues (..., N), ascending.
      estimator: "hill", "fixed_finger" or "goodness_of_fit".
      part: The part of the eigenvalues below the tail, one in `part`, in "hill".

    Returns:
      The exponents (...).

    Raises:
      ReslabError: On an unknown estimator.
    """
    count = values.shape[-1]
    # Zero has no logarithm; this value is far below every tail.
    logs = jnp.log(jnp.maximum(values, jnp.finfo(values.dtype).tiny))
    if estimator == "hill":
        begin = count // part
        excess = logs[..., begin:] - logs[..., begin : begin + 1]
        total = jnp.sum(excess, axis=-1)
        return 1 + (count - begin) / jnp.where(total > 0, total, jnp.inf)

    def fit(values, logs):
        sizes = count - jnp.arange(count, dtype=values.dtype)
        sums = jnp.cumsum(logs[::-1])[::-1] - sizes * logs
        alphas = 1 + sizes / jnp.where(sums > 0, sums, jnp.inf)

        def distance(index):
            rank = jnp.arange(count) - index
            exponent = (1 - alphas[index]) * (logs - logs[index])
            gap = jnp.abs(1 - jnp.exp(exponent) - rank / sizes[index])
            return jnp.max(jnp.where(rank >= 0, gap, 0.0))

        distances = jax.lax.map(distance, jnp.arange(count))
        allowed = (jnp.arange(count) < count - 1) & (alphas > 1)
        if estimator == "fixed_finger":
            decades = logs / jnp.log(10.0).astype(logs.dtype)
            counts, edges = jnp.histogram(decades, BINS)
            peak = 10 ** edges[jnp.argmax(counts)]
            allowed &= (values >= jnp.log10(0.95 * peak)) & (values <= 1.5 * peak)
        best = jnp.argmin(jnp.where(allowed, distances, 1.0))
        return alphas[best]

    shape = values.shape[:-1]
    flat = values.reshape(-1, count), logs.reshape(-1, count)
    return jax.lax.map(lambda pair: fit(*pair), flat).reshape(shape)


def correlated_tail(values: jax.Array) -> tuple[Any, Any]:
    """Finds the first eigenvalue of those whose product is one, at mean one.

    Reference: Martin & Hinrichs, 2025, https://arxiv.org/abs/2507.17912 (the
    condition on the determinant); equal to WeightWatcher's `detX_constraint`.

    Args:
      values: Eigenvalues (N,), ascending.

    Returns:
      The number of eigenvalues in the tail, and the index of its first.
    """
    count = values.shape[-1]
    logs = jnp.log(values * count / jnp.sum(values))
    tails = jnp.cumsum(logs[::-1])[::-1]
    # From the largest down, the first tail with a product below one.
    index = count - 1 - jnp.argmax((tails < 0)[::-1])
    return count - index, index
