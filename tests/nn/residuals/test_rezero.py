import jax
import jax.numpy as jnp
import numpy as np

from reslab.core.trees import unbox
from reslab.nn.residuals.rezero import ReZero


def test_equation():
    x = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    scale = np.float32(0.7)
    y = ReZero().apply({"params": {"scale": scale}}, x, jnp.tanh, site=3)
    np.testing.assert_allclose(y, x + 0.7 * np.tanh(x), rtol=1e-6)


def test_starts_as_the_identity_and_learns_from_the_first_step():
    x = jax.random.normal(jax.random.key(0), (2, 3, 8))
    y, variables = ReZero().init_with_output(jax.random.key(0), x, jnp.tanh, site=0)
    np.testing.assert_array_equal(y, x)
    slope = jax.grad(
        lambda v: jnp.sum(jnp.square(ReZero().apply(v, x, jnp.tanh, site=0)))
    )(unbox(variables))["params"]["scale"]
    np.testing.assert_allclose(slope, 2 * np.sum(x * np.tanh(x)), rtol=1e-5)
