import jax.numpy as jnp
import numpy as np

from reslab.nn.ffns.situ_glu import SiTUGLU
from reslab.nn.ffns.swiglu import SwiGLU

DOUBLE = {"dtype": jnp.float64, "param_dtype": jnp.float64}


def given():
    rng = np.random.default_rng(0)
    shapes = {"gate": (8, 12), "up": (8, 12), "down": (12, 8)}
    params = {name: {"kernel": rng.normal(size=s)} for name, s in shapes.items()}
    return rng.normal(size=(2, 3, 8)), params


def test_equation(x64):
    x, params = given()
    gate, up, down = (params[n]["kernel"] for n in ("gate", "up", "down"))
    g = 3 * np.tanh(x @ gate / 3) / (1 + np.exp(-(x @ gate)))
    u = 5 * np.tanh(x @ up / 5)
    ffn = SiTUGLU(hidden=12, gate_bound=3.0, up_bound=5.0, **DOUBLE)
    y = ffn.apply({"params": params}, x)
    np.testing.assert_allclose(y, (g * u) @ down, rtol=1e-10)


def test_is_bounded_and_for_small_inputs_swiglu(x64):
    x, params = given()
    ffn = SiTUGLU(hidden=12, **DOUBLE)
    most = np.abs(params["down"]["kernel"]).sum(axis=0) * 4 * 25
    assert np.all(np.abs(ffn.apply({"params": params}, 1e6 * x)) <= most * (1 + 1e-9))
    small = 1e-3 * x
    y, wanted = (
        one.apply({"params": params}, small)
        for one in (ffn, SwiGLU(hidden=12, **DOUBLE))
    )
    np.testing.assert_allclose(y, wanted, rtol=1e-3, atol=1e-12)
