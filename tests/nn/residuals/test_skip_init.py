import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.nn.residuals.skip_init import SkipInit


@pytest.mark.parametrize("start", [0.0, 0.25])
def test_starts_where_it_is_told_to(start):
    x = jax.random.normal(jax.random.key(0), (2, 3, 8))
    residual = SkipInit(start=start)
    y, _ = residual.init_with_output(jax.random.key(0), x, jnp.tanh, site=0)
    np.testing.assert_allclose(y, x + start * np.tanh(x), atol=1e-6)


def test_equation():
    x = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    params = {"scale": np.float32(-1.5)}
    y = SkipInit().apply({"params": params}, x, jnp.tanh, site=3)
    np.testing.assert_allclose(y, x - 1.5 * np.tanh(x), atol=1e-6)
