"""How heavy the tail of a matrix's spectrum is, in pure functions.

Eigenvalues are those of W' W, the squares of W's singular values. Their largest ones
are fitted by a power law, density ~ e^-alpha; a small alpha is a heavy tail.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from reslab.core.errors import ReslabError, nearest

ESTIMATORS = ("hill", "fixed_finger", "goodness_of_fit")
BINS = 100


def eigenvalues(matrices: jax.Array) -> jax.Array:
    """The eigenvalues of W' W for matrices (..., m, n), ascending.

    Returns:
      The smaller side's number of them, (..., min(m, n)).
    """
    return jnp.flip(jnp.square(jnp.linalg.svd(matrices, compute_uv=False)), -1)


def spectrum_quantiles(matrices: jax.Array, quantiles: Sequence[float]) -> jax.Array:
    """Quantiles of the singular values over the Frobenius norm.

    Args:
      matrices: Of shape (stacked, m, n).
      quantiles: Fractions.

    Returns:
      Of shape (stacked, quantiles); 0 for a matrix of zeros.
    """
    values = jnp.linalg.svd(matrices, compute_uv=False)
    size = jnp.sqrt(jnp.sum(jnp.square(values), -1, keepdims=True))
    share = values / jnp.where(size > 0, size, 1.0)
    return jnp.quantile(share, jnp.asarray(quantiles, share.dtype), axis=-1).T


def tail_exponents(values: jax.Array, estimator: str = "hill") -> jax.Array:
    """The exponent of a power law fitted to the largest eigenvalues.

        alpha = 1 + n / sum_(j >= i) ln(e_j / e_i),  n = N - i

    "hill" begins the tail at the median, i = N / 2. "goodness_of_fit" takes the
    beginning with the smallest distance of Kolmogorov and Smirnov, out of all;
    "fixed_finger" out of those near the peak of the histogram of log10 e.

    Reference: Clauset et al., 2009, https://arxiv.org/abs/0706.1062, Eq. 3.1;
    Hill, 1975; the three choices: Martin & Mahoney, 2021,
    https://arxiv.org/abs/1810.01075, Yang et al., 2023,
    https://arxiv.org/abs/2202.02842 and Zhou et al., 2023,
    https://arxiv.org/abs/2312.00359. All three equal the code of the layer-wise
    learning rates to 2e-5, including its lower end of the peak, which is a logarithm
    where the upper one is not.

    Args:
      values: Eigenvalues (..., N), ascending.
      estimator: One of `ESTIMATORS`.

    Returns:
      The exponents (...).

    Raises:
      ReslabError: On an unknown estimator.
    """
    if estimator not in ESTIMATORS:
        raise ReslabError(
            f"tail exponent: unknown estimator {estimator!r}",
            hint=nearest(estimator, ESTIMATORS),
        )
    count = values.shape[-1]
    # What is zero has no logarithm; it is far below every tail.
    logs = jnp.log(jnp.maximum(values, jnp.finfo(values.dtype).tiny))
    if estimator == "hill":
        begin = count // 2
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
    """Where the eigenvalues begin whose product is one, once their mean is one.

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
    # From the largest down, the first tail whose product falls below one.
    index = count - 1 - jnp.argmax((tails < 0)[::-1])
    return count - index, index
