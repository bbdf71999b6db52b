import jax.numpy as jnp
import numpy as np

from reslab.nn.ffns.relu2 import SquaredReLUFeedForward


def test_equation(x64):
    rng = np.random.default_rng(0)
    x, up, down = (rng.normal(size=s) for s in ((2, 3, 8), (8, 12), (12, 8)))
    ffn = SquaredReLUFeedForward(hidden=12, dtype=jnp.float64, param_dtype=jnp.float64)
    params = {"up": {"kernel": up}, "down": {"kernel": down}}
    wanted = np.maximum(x @ up, 0) ** 2 @ down
    y = ffn.apply({"params": params}, x)
    np.testing.assert_allclose(y, wanted, rtol=1e-10, atol=1e-12)
