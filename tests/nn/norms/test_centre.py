import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.nn.norms.centre import Centre
from reslab.nn.norms.layer import LayerNorm
from reslab.nn.norms.rms import RMSNorm


def test_equation_and_gradient(x64):
    x, cotangent = np.random.default_rng(0).normal(size=(2, 3, 8)) + 4.0
    y, pull = jax.vjp(lambda x: Centre().apply({}, x), jnp.asarray(x))
    np.testing.assert_allclose(y, x - x.mean(-1, keepdims=True), rtol=1e-12)
    (slope,) = pull(jnp.asarray(cotangent))
    wanted = cotangent - cotangent.mean(-1, keepdims=True)
    np.testing.assert_allclose(slope, wanted, rtol=1e-12)


@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_is_the_first_half_of_layer_normalization(x64, shift):
    x = np.random.default_rng(0).normal(size=(3, 8)) + shift
    wanted = LayerNorm(use_gain=False, use_bias=False).apply({}, x)
    y = RMSNorm(use_gain=False).apply({}, Centre().apply({}, x))
    np.testing.assert_allclose(y, wanted, rtol=1e-9)
