import jax.numpy as jnp
import numpy as np

from reslab.nn.ffns.silu import build


def test_equation(x64):
    rng = np.random.default_rng(0)
    x, up, down = (rng.normal(size=s) for s in ((2, 3, 8), (8, 12), (12, 8)))
    ffn = build(hidden=12, dtype=jnp.float64, param_dtype=jnp.float64)
    params = {"up": {"kernel": up}, "down": {"kernel": down}}
    h = x @ up
    wanted = (h / (1 + np.exp(-h))) @ down
    np.testing.assert_allclose(ffn.apply({"params": params}, x), wanted, rtol=1e-10)
