import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.trees import unbox
from reslab.nn.norms.layer import LayerNorm


def oracle(x, gain, bias, epsilon):
    centred = x - np.mean(x, axis=-1, keepdims=True)
    deviation = np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + epsilon)
    return centred / deviation * (1 + gain) + bias


def test_equation(x64):
    rng = np.random.default_rng(0)
    x, gain, bias = (rng.normal(size=size) for size in ((3, 5, 8), 8, 8))
    y = LayerNorm(epsilon=0.1).apply({"params": {"gain": gain, "bias": bias}}, x)
    np.testing.assert_allclose(y, oracle(x, gain, bias, 0.1), rtol=1e-12)


@pytest.mark.parametrize("is_gain_offset", [True, False])
def test_golden(golden_set, assert_golden, is_gain_offset):
    assert_golden(
        LayerNorm(epsilon=1e-5, is_gain_offset=is_gain_offset),
        golden_set("basic_norms", "layernorm_"),
        {"gain": "weight", "bias": "bias"},
        {"gain": float(is_gain_offset)},
    )


@pytest.mark.parametrize(("is_gain_offset", "start"), [(True, 0.0), (False, 1.0)])
def test_starts_without_effect_however_the_gain_is_stored(is_gain_offset, start):
    x = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    norm = LayerNorm(is_gain_offset=is_gain_offset)
    y, variables = norm.init_with_output(jax.random.key(0), x)
    np.testing.assert_array_equal(unbox(variables)["params"]["gain"], start)
    bare = LayerNorm(use_gain=False, use_bias=False)
    np.testing.assert_array_equal(y, bare.apply({}, x))


@pytest.mark.parametrize(("scale", "shift"), [(1e-3, 0.0), (1.0, 50.0), (7.0, -3.0)])
def test_sees_neither_scale_nor_shift_of_its_input(x64, scale, shift):
    x = np.random.default_rng(0).normal(size=(3, 8))
    norm = LayerNorm(epsilon=0.0, use_gain=False, use_bias=False)
    np.testing.assert_allclose(
        norm.apply({}, scale * x + shift), norm.apply({}, x), rtol=1e-9
    )


def test_gradient_moves_neither_scale_nor_mean(x64):
    x, cotangent = np.random.default_rng(0).normal(size=(2, 3, 8))
    norm = LayerNorm(epsilon=0.0, use_gain=False, use_bias=False)
    y, pull = jax.vjp(lambda x: norm.apply({}, x), x)
    (gradient,) = pull(jnp.asarray(cotangent))
    assert np.max(np.abs(gradient)) > 0.1
    np.testing.assert_allclose(np.sum(gradient, axis=-1), 0.0, atol=1e-12)
    np.testing.assert_allclose(np.sum(gradient * y, axis=-1), 0.0, atol=1e-12)


def test_keeps_its_accuracy_far_from_zero():
    x = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32) + 1e4
    y = LayerNorm().apply(
        {
            "params": {
                "gain": np.zeros(64, np.float32),
                "bias": np.zeros(64, np.float32),
            }
        },
        x,
    )
    wanted = oracle(x.astype(np.float64), 0.0, 0.0, 1e-6)
    np.testing.assert_allclose(y, wanted, atol=2e-3)
