import jax
import jax.numpy as jnp
import numpy as np

from reslab.nn.residuals.plain import Plain


def test_equation():
    x = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    residual = Plain()
    y = residual(residual.widen(x), jnp.tanh, site=5)
    np.testing.assert_allclose(residual.narrow(y), x + np.tanh(x), rtol=1e-6)


def test_adds_the_branch_once_and_has_no_parameters():
    x = np.ones((1, 2, 4), np.float32)
    y, variables = Plain().init_with_output(
        jax.random.key(0), x, lambda h: 2 * h, site=0
    )
    np.testing.assert_array_equal(y, 3 * x)
    assert not variables
