import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.core.trees import unbox
from reslab.nn.norms.rms import RMSNorm
from reslab.nn.norms.seednorm import SelfRescaledNorm

KEYS = {"gain": "gamma", "dynamic_gain": "alpha", "direction": "beta"}


def oracle(x, gain, dynamic_gain, direction, heads, epsilon):
    root = np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + epsilon)
    size = x.shape[-1] // heads
    factor = np.empty_like(x)
    for head in range(heads):
        chunk = slice(head * size, (head + 1) * size)
        seen = np.tanh(x[..., chunk] @ direction[chunk])[..., None]
        factor[..., chunk] = 1 + gain[chunk] + seen * dynamic_gain[chunk]
    return factor * x / root


def moved(features=8):
    rng = np.random.default_rng(1)
    return {name: rng.normal(size=features) for name in KEYS}


@pytest.mark.parametrize("heads", [1, 2, 8])
def test_equation(x64, heads):
    x = np.random.default_rng(0).normal(size=(3, 5, 8))
    y = SelfRescaledNorm(heads=heads, epsilon=0.1).apply({"params": moved()}, x)
    np.testing.assert_allclose(
        y, oracle(x, **moved(), heads=heads, epsilon=0.1), rtol=1e-10
    )


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("start", ["init", "rand"])
def test_golden(golden_set, assert_golden, heads, start):
    assert_golden(
        SelfRescaledNorm(heads=heads, epsilon=1e-5),
        golden_set("seednorm", f"h{heads}_{start}_"),
        KEYS,
        {"gain": 1.0},
    )


@pytest.mark.parametrize("heads", [1, 4])
def test_starts_as_rms_and_learns_the_direction_first(x64, heads):
    x, cotangent = np.random.default_rng(0).normal(size=(2, 3, 8))
    norm = SelfRescaledNorm(heads=heads, epsilon=1e-6, param_dtype=jnp.float64)
    variables = unbox(norm.init(jax.random.key(0), x))
    y, pull = jax.vjp(norm.apply, variables, x)
    np.testing.assert_allclose(y, RMSNorm(use_gain=False).apply({}, x), rtol=1e-12)
    gradient = pull(jnp.asarray(cotangent))[0]["params"]
    np.testing.assert_array_equal(gradient["dynamic_gain"], 0.0)
    assert np.all(gradient["direction"] != 0)


def test_without_a_direction_is_rms_with_its_gain(x64):
    x = np.random.default_rng(0).normal(size=(3, 8))
    params = moved() | {"direction": np.zeros(8)}
    y = SelfRescaledNorm(epsilon=1e-6).apply({"params": params}, x)
    wanted = RMSNorm().apply({"params": {"gain": params["gain"]}}, x)
    np.testing.assert_allclose(y, wanted, rtol=1e-12)


def test_sees_the_scale_of_its_input_within_bounds(x64):
    x = np.random.default_rng(0).normal(size=(3, 8))
    norm, params = SelfRescaledNorm(epsilon=0.0), moved()
    y, scaled = (norm.apply({"params": params}, s * x) for s in (1.0, 3.0))
    assert np.max(np.abs(y - scaled)) > 0.1
    direction = RMSNorm(epsilon=0.0, use_gain=False).apply({}, x)
    bound = np.abs(1 + params["gain"]) + np.abs(params["dynamic_gain"])
    for output in (y, scaled):
        assert np.all(np.abs(output) <= bound * np.abs(direction) + 1e-12)


@pytest.mark.parametrize("heads", [0, 3])
def test_refuses_heads_that_do_not_divide_the_features(heads):
    with pytest.raises(
        ReslabError, match=rf"(divisor of the 8 features|least 1); got {heads}"
    ):
        SelfRescaledNorm(heads=heads).init(jax.random.key(0), jnp.ones((2, 8)))
