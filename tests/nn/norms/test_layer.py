import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


def test_golden(golden, x64):
    data = {
        key.removeprefix("layernorm_"): value
        for key, value in golden("basic_norms").items()
    }
    norm = LayerNorm(epsilon=1e-5, param_dtype=jnp.float64)
    params = {"gain": data["param_weight"] - 1, "bias": data["param_bias"]}
    y, pull = jax.vjp(lambda p, x: norm.apply({"params": p}, x), params, data["x"])
    gradient, x_gradient = pull(jnp.asarray(data["cot"]))
    for actual, key in (
        (y, "out"),
        (x_gradient, "grad_x"),
        (gradient["gain"], "grad_weight"),
        (gradient["bias"], "grad_bias"),
    ):
        np.testing.assert_allclose(actual, data[key], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("scale", "shift"), [(1e-3, 0.0), (1.0, 50.0), (7.0, -3.0)])
def test_sees_neither_scale_nor_shift_of_its_input(x64, scale, shift):
    x = np.random.default_rng(0).normal(size=(3, 8))
    norm = LayerNorm(epsilon=0.0, use_gain=False, use_bias=False)
    np.testing.assert_allclose(
        norm.apply({}, scale * x + shift), norm.apply({}, x), rtol=1e-9
    )


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
