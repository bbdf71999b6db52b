import math

import jax.numpy as jnp
import numpy as np

from reslab.nn.ffns.geglu import GEGLU


def test_equation(x64):
    rng = np.random.default_rng(0)
    x, down = rng.normal(size=(2, 3, 8)), rng.normal(size=(12, 8))
    gate, up = rng.normal(size=(2, 8, 12))
    ffn = GEGLU(hidden=12, dtype=jnp.float64, param_dtype=jnp.float64)
    kernels = {"gate": gate, "up": up, "down": down}
    params = {name: {"kernel": kernel} for name, kernel in kernels.items()}
    h = x @ gate
    h = h / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
    y = ffn.apply({"params": params}, x)
    np.testing.assert_allclose(y, (h * (x @ up)) @ down, rtol=1e-10, atol=1e-12)
