import jax.numpy as jnp
import numpy as np

from reslab.nn.placements.post import PostNorm
from reslab.nn.residuals.hyper import HyperConnections
from reslab.nn.residuals.plain import Plain


def rms(x, gain):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * (1 + gain)


def apply(gain, x, branch, residual=None):
    placement = PostNorm(param_dtype=jnp.float64)
    params = {"params": {"stream_norm": {"gain": gain}}}
    return placement.apply(params, x, residual or Plain(), branch, site=0)


def test_equation(x64):
    rng = np.random.default_rng(0)
    x, gain = rng.normal(size=(2, 3, 8)), rng.normal(size=8)
    wanted = rms(x + np.tanh(x), gain)
    np.testing.assert_allclose(apply(gain, x, jnp.tanh), wanted, rtol=1e-12)


def test_stream_has_unit_size_whatever_the_branch_adds(x64):
    x = np.random.default_rng(0).normal(size=(2, 3, 8))
    y = apply(np.zeros(8), x, lambda h: 1e3 * h)
    np.testing.assert_allclose(np.mean(np.square(y), axis=-1), 1.0, rtol=1e-6)


def test_every_stream_is_normalized(x64):
    rng = np.random.default_rng(0)
    x, gain = rng.normal(size=(3, 2, 3, 8)), rng.normal(size=8)
    params = {"mix": rng.normal(size=(3, 4)), "write": rng.normal(size=3)}
    hyper = HyperConnections(streams=3).bind({"params": params})
    wanted = rms(np.asarray(hyper(x, jnp.tanh, site=0)), gain)
    y = apply(gain, x, jnp.tanh, hyper)
    np.testing.assert_allclose(y, wanted, rtol=1e-12)


def test_needs_no_norm_after_the_last_layer():
    assert not PostNorm.needs_final_norm
