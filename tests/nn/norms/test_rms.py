import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.trees import unbox
from reslab.nn.norms.rms import RMSNorm


def oracle(x, gain, epsilon):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + epsilon) * (1 + gain)


def test_equation(x64):
    rng = np.random.default_rng(0)
    x, gain = rng.normal(size=(3, 5, 8)), rng.normal(size=8)
    y = RMSNorm(epsilon=0.1).apply({"params": {"gain": gain}}, x)
    np.testing.assert_allclose(y, oracle(x, gain, 0.1), rtol=1e-12)


# Where the authors store the gain itself, ours is that or that minus one.
@pytest.mark.parametrize(
    ("name", "is_gain_offset", "offset", "dtype", "tolerance"),
    [
        ("torch_rmsnorm", True, 1.0, np.float64, 1e-7),
        ("torch_rmsnorm", False, 0.0, np.float64, 1e-7),
        ("llama_rmsnorm_f32", True, 1.0, np.float32, 1e-5),
        ("llama_rmsnorm_f32", False, 0.0, np.float32, 1e-5),
        ("gemma_rmsnorm_f32", True, 0.0, np.float32, 1e-5),
        ("qwen3next_rmsnorm_f32", True, 0.0, np.float32, 1e-5),
    ],
)
def test_golden(golden, x64, name, is_gain_offset, offset, dtype, tolerance):
    data = golden("basic_norms")
    x, cotangent, weight = (
        data[f"{name}_{key}"].astype(dtype) for key in ("x", "cot", "param_weight")
    )
    norm = RMSNorm(epsilon=1e-6, is_gain_offset=is_gain_offset, param_dtype=dtype)
    params = {"gain": weight - dtype(offset)}
    y, pull = jax.vjp(lambda p, x: norm.apply({"params": p}, x), params, x)
    gradient, x_gradient = pull(jnp.asarray(cotangent))
    assert y.dtype == dtype
    close = {"rtol": tolerance, "atol": tolerance}
    np.testing.assert_allclose(y, data[f"{name}_out"], **close)
    np.testing.assert_allclose(x_gradient, data[f"{name}_grad_x"], **close)
    np.testing.assert_allclose(gradient["gain"], data[f"{name}_grad_weight"], **close)


GEMMA = RMSNorm(param_dtype=jnp.bfloat16)
LLAMA = RMSNorm(
    is_gain_offset=False, is_rounded_before_gain=True, param_dtype=jnp.bfloat16
)


@pytest.mark.parametrize(("name", "norm"), [("gemma", GEMMA), ("llama", LLAMA)])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_rounds_bfloat16_where_the_authors_do(golden, name, norm, compiled):
    data = golden("basic_norms")
    x, weight, wanted = (
        jnp.asarray(data[f"bf16_{name}_{key}"], jnp.bfloat16)
        for key in ("x", "weight", "out")
    )
    apply = jax.jit(norm.apply) if compiled else norm.apply
    y = apply({"params": {"gain": weight}}, x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, wanted)


def test_rounding_before_the_gain_is_seen_in_bfloat16_alone():
    x = jax.random.normal(jax.random.key(0), (8, 32))
    variables = {"params": {"gain": jax.random.normal(jax.random.key(1), (32,))}}
    once, twice = RMSNorm(), RMSNorm(is_rounded_before_gain=True)
    np.testing.assert_array_equal(once.apply(variables, x), twice.apply(variables, x))
    short = x.astype(jnp.bfloat16)
    assert np.any(once.apply(variables, short) != twice.apply(variables, short))


@pytest.mark.parametrize(("is_gain_offset", "start"), [(True, 0.0), (False, 1.0)])
def test_starts_without_effect_however_the_gain_is_stored(is_gain_offset, start):
    x = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    norm = RMSNorm(is_gain_offset=is_gain_offset)
    y, variables = norm.init_with_output(jax.random.key(0), x)
    np.testing.assert_array_equal(unbox(variables)["params"]["gain"], start)
    np.testing.assert_array_equal(y, RMSNorm(use_gain=False).apply({}, x))


@pytest.mark.parametrize("scale", [1e-3, 7.0])
def test_does_not_see_the_scale_of_its_input(x64, scale):
    x = np.random.default_rng(0).normal(size=(3, 8))
    norm = RMSNorm(epsilon=0.0, use_gain=False)
    np.testing.assert_allclose(norm.apply({}, scale * x), norm.apply({}, x), rtol=1e-12)


def test_gradient_is_at_right_angles_to_the_input(x64):
    x, cotangent = np.random.default_rng(0).normal(size=(2, 3, 8))
    norm = RMSNorm(epsilon=0.0, use_gain=False)
    _, pull = jax.vjp(lambda x: norm.apply({}, x), x)
    (gradient,) = pull(jnp.asarray(cotangent))
    assert np.max(np.abs(gradient)) > 0.1
    np.testing.assert_allclose(np.sum(gradient * x, axis=-1), 0.0, atol=1e-12)


def test_without_gain_has_no_parameters():
    assert not RMSNorm(use_gain=False).init(jax.random.key(0), jnp.ones((2, 4)))
