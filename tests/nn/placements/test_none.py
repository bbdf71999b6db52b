import jax.numpy as jnp
import numpy as np

from reslab.nn.placements.none import NoNorm
from reslab.nn.residuals.plain import Plain


def test_equation():
    x = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    y = NoNorm().apply({}, x, Plain(), jnp.tanh, site=0)
    np.testing.assert_array_equal(y, x + jnp.tanh(x))


def test_a_model_without_norms_has_none(small_variables):
    names = small_variables(placement="none")
    assert not [name for name in names if "norm" in name]
