import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.nn.residuals.shallow import ShallowResidual


def through(group, x, kernels):
    residual = ShallowResidual(group=group)
    stream = residual.widen(x)
    for site, kernel in enumerate(kernels):
        stream = residual(stream, lambda h, k=kernel: jnp.tanh(h @ k), site=site)
    return residual.narrow(stream)


@pytest.mark.parametrize("group", [0, 1, 2, 4, 9])
def test_equation(x64, group):
    rng = np.random.default_rng(0)
    x, kernels = rng.normal(size=(2, 3, 8)), rng.normal(size=(5, 8, 8))
    wanted = x
    for start in range(0, 5, group or 5):
        part = kernels[start : start + (group or 5)]
        wanted = wanted + sum(np.tanh(wanted @ kernel) for kernel in part)
    np.testing.assert_allclose(
        through(group, jnp.asarray(x), kernels), wanted, rtol=1e-12
    )


def test_leaves_out_products_of_branches(x64):
    rng = np.random.default_rng(0)
    x, (a, b) = rng.normal(size=(1, 2, 4)), rng.normal(size=(2, 4, 4))

    def linear(group):
        residual = ShallowResidual(group=group)
        stream = residual.widen(jnp.asarray(x))
        for site, kernel in enumerate((a, b)):
            stream = residual(stream, lambda h, k=kernel: h @ k, site=site)
        return residual.narrow(stream)

    np.testing.assert_allclose(linear(1) - linear(0), x @ a @ b, rtol=1e-9)


def test_refuses_a_negative_group():
    with pytest.raises(ReslabError, match="group: expected at least 1, or 0"):
        ShallowResidual(group=-1)
