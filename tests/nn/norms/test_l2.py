import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.trees import unbox
from reslab.nn.norms.l2 import ScaleNorm
from reslab.nn.norms.rms import RMSNorm


def test_equation(x64):
    x, gain = np.random.default_rng(0).normal(size=(3, 5, 8)), np.float64(1.7)
    y = ScaleNorm().apply({"params": {"gain": gain}}, x)
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    np.testing.assert_allclose(y, gain * x / length, rtol=1e-12)


def test_gradient(x64):
    x, cotangent = np.random.default_rng(0).normal(size=(2, 3, 8))
    gain = np.float64(1.7)
    _, pull = jax.vjp(
        lambda gain, x: ScaleNorm().apply({"params": {"gain": gain}}, x), gain, x
    )
    gain_gradient, gradient = pull(jnp.asarray(cotangent))
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    unit = x / length
    along = np.sum(cotangent * unit, axis=-1, keepdims=True)
    np.testing.assert_allclose(gain_gradient, np.sum(along), rtol=1e-10)
    wanted = gain / length * (cotangent - along * unit)
    np.testing.assert_allclose(gradient, wanted, rtol=1e-9)


def test_starts_as_rms_with_one_number_to_learn():
    x = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    y, variables = ScaleNorm().init_with_output(jax.random.key(0), x)
    assert [leaf.shape for leaf in jax.tree.leaves(variables)] == [()]
    np.testing.assert_allclose(unbox(variables)["params"]["gain"], 8**0.5, rtol=1e-6)
    wanted = RMSNorm(epsilon=0.0, use_gain=False).apply({}, x)
    np.testing.assert_allclose(y, wanted, rtol=1e-5)


@pytest.mark.parametrize(("scale", "length"), [(1e-3, 3.0), (50.0, 3.0), (1e-6, 0.3)])
def test_gives_every_vector_above_epsilon_the_same_length(x64, scale, length):
    x = np.random.default_rng(0).normal(size=(3, 8))
    x *= scale / np.linalg.norm(x, axis=-1, keepdims=True)
    y = ScaleNorm(epsilon=1e-5).apply({"params": {"gain": np.float64(3.0)}}, x)
    np.testing.assert_allclose(np.linalg.norm(y, axis=-1), length, rtol=1e-12)
