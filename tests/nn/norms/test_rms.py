import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.nn.norms.rms import RMSNorm


def oracle(x, gain, epsilon):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + epsilon) * (1 + gain)


def test_equation(x64):
    rng = np.random.default_rng(0)
    x, gain = rng.normal(size=(3, 5, 8)), rng.normal(size=8)
    y = RMSNorm(epsilon=0.1).apply({"params": {"gain": gain}}, x)
    np.testing.assert_allclose(y, oracle(x, gain, 0.1), rtol=1e-12)


# Where the authors store the gain itself, ours is that minus one.
@pytest.mark.parametrize(
    ("name", "offset", "dtype", "tolerance"),
    [
        ("torch_rmsnorm", 1.0, np.float64, 1e-7),
        ("llama_rmsnorm_f32", 1.0, np.float32, 1e-5),
        ("gemma_rmsnorm_f32", 0.0, np.float32, 1e-5),
    ],
)
def test_golden(golden, x64, name, offset, dtype, tolerance):
    data = golden("basic_norms")
    x, cotangent, weight = (
        data[f"{name}_{key}"].astype(dtype) for key in ("x", "cot", "param_weight")
    )
    norm = RMSNorm(epsilon=1e-6, param_dtype=dtype)
    params = {"gain": weight - dtype(offset)}
    y, pull = jax.vjp(lambda p, x: norm.apply({"params": p}, x), params, x)
    gradient, x_gradient = pull(jnp.asarray(cotangent))
    assert y.dtype == dtype
    close = {"rtol": tolerance, "atol": tolerance}
    np.testing.assert_allclose(y, data[f"{name}_out"], **close)
    np.testing.assert_allclose(x_gradient, data[f"{name}_grad_x"], **close)
    np.testing.assert_allclose(gradient["gain"], data[f"{name}_grad_weight"], **close)


def test_rounds_once_in_bfloat16_as_gemma_does(golden):
    data = golden("basic_norms")
    x, weight, wanted = (
        jnp.asarray(data[f"bf16_gemma_{key}"], jnp.bfloat16)
        for key in ("x", "weight", "out")
    )
    y = RMSNorm(param_dtype=jnp.bfloat16).apply({"params": {"gain": weight}}, x)
    np.testing.assert_array_equal(y, wanted)


@pytest.mark.parametrize("scale", [1e-3, 7.0])
def test_does_not_see_the_scale_of_its_input(x64, scale):
    x = np.random.default_rng(0).normal(size=(3, 8))
    norm = RMSNorm(epsilon=0.0, use_gain=False)
    np.testing.assert_allclose(norm.apply({}, scale * x), norm.apply({}, x), rtol=1e-12)


def test_without_gain_has_no_parameters():
    assert not RMSNorm(use_gain=False).init(jax.random.key(0), jnp.ones((2, 4)))
