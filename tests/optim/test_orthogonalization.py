"""Orthogonalization in bfloat16, beside the authors' own rounding.

The truth is the same iteration in float64. The authors' errors are those of their runs
in bfloat16, and of PyTorch's arithmetic, written out here: products are accumulated in
float32, and a product with a Python number is taken in float32 and rounded.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.precision import scaled
from reslab.optim.orthogonalization import coefficients, orthogonalized, polar_express


def iterated(x, table, margin, product, times, rounded):
    """Newton-Schulz steps in the authors' order, by the arithmetic that is given."""
    is_tall = x.shape[-2] > x.shape[-1]
    x = np.swapaxes(x, -1, -2) if is_tall else x
    size = np.sqrt(np.sum(np.square(x.astype(np.float64)), (-2, -1), keepdims=True))
    x = rounded(x / (margin * size + 1e-7))
    for a, b, c in table:
        square = product(x, np.swapaxes(x, -1, -2))
        near = rounded(times(b, square) + product(times(c, square), square))
        x = rounded(times(a, x) + product(near, x))
    return np.swapaxes(x, -1, -2) if is_tall else x


def exact(x, table, margin):
    return iterated(x, table, margin, np.matmul, np.multiply, np.asarray)


def as_pytorch(x, table, margin):
    short = jnp.bfloat16.dtype

    def rounded(x):
        return np.asarray(x).astype(np.float32).astype(short).astype(np.float32)

    def product(x, y):
        return rounded(x @ y)

    def times(number, x):
        return rounded(np.float32(number) * x)

    return iterated(rounded(x), table, margin, product, times, rounded)


def ours(x, table, margin):
    found = orthogonalized(
        jnp.asarray(x, jnp.bfloat16), table, dtype=jnp.bfloat16, margin=margin
    )
    return np.asarray(found, np.float64)


def assert_as_exact(found, authors, wanted):
    """The errors are at most 1.2 times the authors', in the mean and at most."""
    for size in (lambda e: np.sqrt(np.mean(np.square(e))), lambda e: np.max(np.abs(e))):
        assert size(found - wanted) <= 1.2 * size(authors - wanted)


@pytest.mark.parametrize("leaf", ["tall", "wide", "lowrank", "batched"])
def test_kellers_golden(golden, leaf):
    arrays, table = golden("muon_keller"), coefficients("keller", 5)
    x, authors = arrays[f"dev_nsin/{leaf}"], arrays[f"dev_ns5_bf16/{leaf}"]
    assert_as_exact(ours(x, table, 1.0), authors, exact(x, table, 1.0))


@pytest.mark.parametrize("steps", [5, 8])
@pytest.mark.parametrize("leaf", ["tall", "wide", "illcond"])
def test_polar_express_golden(golden, leaf, steps):
    arrays, table = golden("polar_express"), polar_express(10)[:steps]
    x, authors = arrays[f"dev_in/{leaf}"], arrays[f"dev_pe{steps}_bf16/{leaf}"]
    assert_as_exact(ours(x, table, 1.01), authors, exact(x, table, 1.01))


@pytest.mark.parametrize("shape", [(96, 96), (64, 160), (3, 48, 32)])
@pytest.mark.parametrize("name, steps", [("keller", 5), ("polar_express", 5)])
def test_pytorchs_arithmetic(name, steps, shape):
    x = np.random.default_rng(0).standard_normal(shape)
    table, margin = coefficients(name, steps), 1.01 if name != "keller" else 1.0
    wanted = exact(x, table, margin)
    assert_as_exact(ours(x, table, margin), as_pytorch(x, table, margin), wanted)


def test_singular_values_end_where_the_polynomials_say():
    rng, table = np.random.default_rng(1), polar_express(5)
    left, _, right = np.linalg.svd(rng.standard_normal((128, 128)))
    sizes = np.geomspace(0.02, 1.0, 128)
    x = (left * sizes) @ right
    wanted = np.linalg.svd(exact(x, table, 1.01), compute_uv=False)
    found = np.linalg.svd(ours(x, table, 1.01), compute_uv=False)
    assert abs(found.min() - wanted.min()) < 0.02
    assert abs(found.max() - wanted.max()) < 0.02


def test_a_factor_is_not_rounded_before_it_multiplies():
    x = jnp.asarray(np.random.default_rng(2).standard_normal(4096), jnp.bfloat16)
    for factor in (3**-0.5, 3.4445, 1 / 7):
        wanted = (np.asarray(x, np.float32) * np.float32(factor)).astype(x.dtype)
        np.testing.assert_array_equal(scaled(x, factor), wanted)
        assert np.any(np.asarray(x * factor) != wanted)
