import jax.numpy as jnp
import numpy as np

from reslab.nn.placements.res_post import ResPostNorm
from reslab.nn.residuals.plain import Plain


def test_equation(x64):
    rng = np.random.default_rng(0)
    x, gain = rng.normal(size=(2, 3, 8)), rng.normal(size=8)
    placement = ResPostNorm(param_dtype=jnp.float64)
    params = {"params": {"output_norm": {"gain": gain}}}
    y = placement.apply(params, x, Plain(), jnp.tanh, site=0)
    h = np.tanh(x)
    h = h / np.sqrt(np.mean(h**2, axis=-1, keepdims=True) + 1e-6) * (1 + gain)
    np.testing.assert_allclose(y, x + h, rtol=1e-12)
