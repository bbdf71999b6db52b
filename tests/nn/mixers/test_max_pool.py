import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.nn.mixers.max_pool import MaxPool

ROWS, COLUMNS, WIDTH = 3, 4, 2
erf = np.vectorize(math.erf)


def gelu(x):
    return x * (1 + erf(x / np.sqrt(2))) / 2


def slope(x):
    return (1 + erf(x / np.sqrt(2))) / 2 + x * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)


def test_equation_and_gradients(x64):
    """Every window by hand, and the gradient of the patch that was largest."""
    rng = np.random.default_rng(0)
    x, cotangent = rng.normal(size=(2, 1, ROWS * COLUMNS, WIDTH))
    params = {
        "up": {"kernel": rng.normal(size=(WIDTH, 6)), "bias": rng.normal(size=6)},
        "output": {
            "kernel": rng.normal(size=(6, WIDTH)),
            "bias": rng.normal(size=WIDTH),
        },
    }
    module = MaxPool(grid=(ROWS, COLUMNS), dtype=jnp.float64, param_dtype=jnp.float64)

    def run(params, x):
        return module.apply({"params": params}, x)[0]

    y, pull = jax.vjp(jax.jit(run), params, jnp.asarray(x))
    slopes, by_x = pull(jnp.asarray(cotangent))

    up, out = params["up"], params["output"]
    wide = x[0] @ up["kernel"] + up["bias"]
    first = gelu(wide).reshape(ROWS, COLUMNS, 6)
    largest, where = np.zeros((ROWS, COLUMNS, 6)), {}
    for i, j, channel in np.ndindex(ROWS, COLUMNS, 6):
        near = [
            (first[a, b, channel], a * COLUMNS + b)
            for a in range(max(i - 1, 0), min(i + 2, ROWS))
            for b in range(max(j - 1, 0), min(j + 2, COLUMNS))
        ]
        largest[i, j, channel], where[i, j, channel] = max(near)
    pooled = largest.reshape(-1, 6)
    hidden = gelu(pooled)
    np.testing.assert_allclose(y[0], hidden @ out["kernel"] + out["bias"], rtol=1e-9)
    by_output = hidden.T @ cotangent[0]
    np.testing.assert_allclose(slopes["output"]["kernel"], by_output, rtol=1e-9)
    back = (cotangent[0] @ out["kernel"].T * slope(pooled)).reshape(ROWS, COLUMNS, 6)
    by_first = np.zeros((ROWS * COLUMNS, 6))
    for (i, j, channel), patch in where.items():
        by_first[patch, channel] += back[i, j, channel]
    by_wide = by_first * slope(wide)
    np.testing.assert_allclose(slopes["up"]["kernel"], x[0].T @ by_wide, rtol=1e-8)
    np.testing.assert_allclose(by_x[0], by_wide @ up["kernel"].T, rtol=1e-8)


def test_pooling_has_no_parameters_and_reaches_three():
    module = MaxPool(grid=(5, 5), use_bias=False, expansion=2.0)
    x = jax.random.normal(jax.random.key(1), (1, 25, 4))
    (y, *_), variables = module.init_with_output(jax.random.key(0), x)
    sizes = [leaf.size for leaf in jax.tree.leaves(variables)]
    assert sizes == [4 * 8, 8 * 4]
    other = module.apply(variables, x.at[0, 12].add(5.0))[0]
    changed = np.any(np.asarray(other != y)[0], axis=-1).reshape(5, 5)
    inside = np.zeros((5, 5), bool)
    inside[1:4, 1:4] = True
    assert not np.any(changed & ~inside)
    assert np.any(changed)


def test_refuses_even_windows():
    with pytest.raises(ReslabError, match="window: expected an odd number; got 2"):
        MaxPool(window=2)
