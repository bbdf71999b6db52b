"""Inverses of unit lower triangular matrices: all methods, and their ranges."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.ops.triangular_inverse.api import METHODS, UNSTABLE, triangular_inverse

GOLDEN = pathlib.Path(__file__).parents[1] / "goldens" / "triangular_inverse.npz"
STABLE = sorted(set(METHODS) - set(UNSTABLE))


def close(actual, expected, tolerance):
    scale = np.max(np.abs(expected))
    np.testing.assert_allclose(np.float64(actual), expected, atol=tolerance * scale)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


@pytest.mark.parametrize("method", METHODS)
def test_golden(golden, method, x64):
    matrices = jnp.asarray(golden["in_A_strict_lower"])

    def run(matrices):
        # Enough to converge; the authors' number is tested below.
        return triangular_inverse(matrices, method=method, iterations=24)

    found, pull = jax.vjp(run, matrices)
    close(found, golden["out_T"], 1e-9)
    (gradient,) = pull(jnp.asarray(golden["cot_T"]))
    close(gradient, golden["grad_A_strict_lower"], 1e-9)


@pytest.mark.parametrize("name", ["neumann", "newton_schulz"])
def test_intermediate_results_of_the_authors(golden, name, x64):
    matrices = jnp.asarray(golden["in_A_strict_lower"])
    iterations = int(golden["newton_schulz_iters"])
    found = triangular_inverse(matrices, method=name, iterations=iterations)
    close(found, golden[f"{name}_out"], 1e-9)


def alike(size, strength=0.95, cosine=0.9):
    """The system of keys that are alike; its inverse is of order one."""
    return np.tril(strength * cosine * np.ones((size, size)), -1)


@pytest.mark.parametrize("size", [1, 2, 16, 24, 64, 128])
@pytest.mark.parametrize("method", STABLE)
def test_keys_that_are_alike_are_inverted_in_float32(size, method):
    matrix = alike(size)
    wanted = np.linalg.inv(np.eye(size) + matrix)
    found = jax.jit(lambda a: triangular_inverse(a, method=method))(
        jnp.asarray(matrix[None], jnp.float32)
    )
    close(found[0], wanted, 2e-6)


def test_powers_of_such_a_matrix_are_not_its_inverse():
    """Why two methods are called unstable."""
    for method, size in (("neumann", 64), ("recursive", 128)):
        matrix = alike(size)
        wanted = np.linalg.inv(np.eye(size) + matrix)
        found = triangular_inverse(jnp.asarray(matrix, jnp.float32), method=method)
        error = np.max(np.abs(np.float64(found) - wanted)) / np.max(np.abs(wanted))
        assert error > 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_bad_input_is_one_line(method):
    with pytest.raises(ReslabError, match=r"expected \(\.\.\., n, n\)"):
        triangular_inverse(jnp.zeros((2, 3)), method=method)
    with pytest.raises(ReslabError, match=method):
        triangular_inverse(jnp.zeros((2, 2)), method=method + "s")
