import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.nn.norms.crms import CompressedRMSNorm
from reslab.nn.norms.layer import LayerNorm
from reslab.nn.norms.rms import RMSNorm


def oracle(x, epsilon):
    whole = np.concatenate([x, -np.sum(x, axis=-1, keepdims=True)], axis=-1)
    root = np.sqrt(np.mean(whole**2, axis=-1, keepdims=True) + epsilon)
    return (whole / root)[..., :-1]


def test_equation(x64):
    x = np.random.default_rng(0).normal(size=(3, 5, 7))
    y = CompressedRMSNorm(epsilon=0.1).apply({}, x)
    np.testing.assert_allclose(y, oracle(x, 0.1), rtol=1e-12)


def test_golden(golden_set, assert_golden):
    assert_golden(
        CompressedRMSNorm(epsilon=1e-5), golden_set("crmsnorm", "crms_norm_"), {}
    )


def test_the_missing_feature_is_minus_the_sum_of_the_others(x64):
    x = np.random.default_rng(0).normal(size=(3, 7))
    whole = np.concatenate([x, -np.sum(x, axis=-1, keepdims=True)], axis=-1)
    wanted = RMSNorm(use_gain=False).apply({}, whole)
    y = CompressedRMSNorm().apply({}, x)
    np.testing.assert_allclose(y, wanted[:, :-1], rtol=1e-12)
    assert np.max(np.abs(y - RMSNorm(use_gain=False).apply({}, x))) > 0.1


@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_is_layer_norm_of_a_stream_whose_mean_was_dropped(x64, shift):
    x = np.random.default_rng(0).normal(size=(3, 8)) + shift
    centred = x - np.mean(x, axis=-1, keepdims=True)
    wanted = LayerNorm(use_gain=False, use_bias=False).apply({}, x)
    y = CompressedRMSNorm().apply({}, centred[:, :-1])
    np.testing.assert_allclose(y, wanted[:, :-1], rtol=1e-9)


def test_has_no_parameters():
    assert not CompressedRMSNorm().init(jax.random.key(0), jnp.ones((2, 4)))
