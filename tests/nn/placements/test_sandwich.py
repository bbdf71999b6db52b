import jax.numpy as jnp
import numpy as np

from reslab.nn.placements.sandwich import SandwichNorm
from reslab.nn.residuals.plain import Plain


def rms(x, gain):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * (1 + gain)


def test_equation(x64):
    rng = np.random.default_rng(0)
    x, first, second = rng.normal(size=(2, 3, 8)), *rng.normal(size=(2, 8))
    params = {"input_norm": {"gain": first}, "output_norm": {"gain": second}}
    placement = SandwichNorm(param_dtype=jnp.float64)
    y = placement.apply({"params": params}, x, Plain(), jnp.tanh, site=0)
    wanted = x + rms(np.tanh(rms(x, first)), second)
    np.testing.assert_allclose(y, wanted, rtol=1e-12)


def test_an_addition_has_the_size_of_its_gain(x64):
    x = np.random.default_rng(0).normal(size=(2, 3, 8))
    zero = {"gain": np.zeros(8)}
    params = {"input_norm": zero, "output_norm": zero}
    placement = SandwichNorm(param_dtype=jnp.float64)
    y = placement.apply({"params": params}, x, Plain(), lambda h: 1e3 * h, site=0)
    np.testing.assert_allclose(np.mean(np.square(y - x), axis=-1), 1.0, rtol=1e-6)
