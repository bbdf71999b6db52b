import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.nn.norms.rms import RMSNorm
from reslab.nn.norms.single_scale import SingleScaleNorm


def test_equation(x64):
    x, gain = np.random.default_rng(0).normal(size=(3, 5, 8)), np.float64(0.7)
    y = SingleScaleNorm(epsilon=0.1).apply({"params": {"gain": gain}}, x)
    root = np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 0.1)
    np.testing.assert_allclose(y, x / root * (1 + gain), rtol=1e-12)


@pytest.mark.parametrize("start", ["init", "rand"])
def test_golden(golden_set, assert_golden, start):
    data = golden_set("ssnorm", f"{start}_")
    assert_golden(SingleScaleNorm(), data, {"gain": "scale"}, {"gain": 1.0})


def test_learns_one_number_and_starts_as_rms():
    x = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    y, variables = SingleScaleNorm().init_with_output(jax.random.key(0), x)
    assert [leaf.shape for leaf in jax.tree.leaves(variables)] == [()]
    np.testing.assert_array_equal(y, RMSNorm(use_gain=False).apply({}, x))


def test_turns_with_its_input_as_a_gain_per_feature_does_not(x64):
    rng = np.random.default_rng(0)
    x, gains = rng.normal(size=(3, 8)), rng.normal(size=8)
    rotation, _ = np.linalg.qr(rng.normal(size=(8, 8)))

    def difference(norm, gain):
        def apply(x):
            return np.asarray(norm.apply({"params": {"gain": jnp.asarray(gain)}}, x))

        return np.max(np.abs(apply(x @ rotation) - apply(x) @ rotation))

    assert difference(SingleScaleNorm(), np.float64(0.7)) < 1e-12
    assert difference(RMSNorm(), gains) > 0.1
