import jax
import jax.numpy as jnp
import numpy as np

from reslab.core.trees import unbox
from reslab.nn.residuals.highway import Highway


def test_equation(x64):
    rng = np.random.default_rng(0)
    x, kernel, bias = (rng.normal(size=s) for s in ((2, 3, 8), (8, 8), 8))
    residual = Highway(dtype=jnp.float64, param_dtype=jnp.float64)
    params = {"gate": {"kernel": kernel}, "gate_bias": bias}
    y = residual.apply({"params": params}, x, jnp.tanh, site=3)
    gate = 1 / (1 + np.exp(-(x @ kernel + bias)))
    np.testing.assert_allclose(y, gate * np.tanh(x) + (1 - gate) * x, rtol=1e-12)


def test_starts_with_one_gate_for_all():
    x = jax.random.normal(jax.random.key(0), (2, 3, 8))
    residual = Highway(bias=-1.0)
    y, variables = residual.init_with_output(jax.random.key(0), x, jnp.tanh, site=0)
    gate = 1 / (1 + np.exp(1.0))
    np.testing.assert_allclose(y, gate * np.tanh(x) + (1 - gate) * x, atol=1e-6)
    params = unbox(variables)["params"]
    np.testing.assert_array_equal(params["gate_bias"], np.full(8, -1.0))
