import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core import registry
from reslab.core.trees import unbox
from reslab.nn.norms.dyt import DynamicTanh


def params(slope=0.7, features=8):
    rng = np.random.default_rng(1)
    gain, bias = rng.normal(size=(2, features))
    return {"slope": np.float64(slope), "gain": gain, "bias": bias}


def test_equation(x64):
    x = np.random.default_rng(0).normal(size=(3, 5, 8))
    p = params()
    y = DynamicTanh().apply({"params": p}, x)
    wanted = np.tanh(p["slope"] * x) * (1 + p["gain"]) + p["bias"]
    np.testing.assert_allclose(y, wanted, rtol=1e-12)


@pytest.mark.parametrize("start", ["init", "rand"])
def test_golden(golden_set, assert_golden, start):
    assert_golden(
        DynamicTanh(),
        golden_set("dyt", f"{start}_"),
        {"slope": "alpha", "gain": "weight", "bias": "bias"},
        {"gain": 1.0},
    )


@pytest.mark.parametrize(("spec", "slope"), [("dyt", 0.5), ("dyt(alpha=0.2)", 0.2)])
def test_starts_at_the_slope_asked_for(spec, slope):
    norm = registry.make("norms", spec)
    y, variables = norm.init_with_output(jax.random.key(0), jnp.ones((2, 4)))
    assert unbox(variables)["params"]["slope"].shape == ()
    np.testing.assert_allclose(y, np.tanh(slope), rtol=1e-6)


def test_is_odd_but_for_its_bias(x64):
    x = np.random.default_rng(0).normal(size=(3, 8))
    norm, p = DynamicTanh(use_bias=False), params()
    del p["bias"]
    plus, minus = (norm.apply({"params": p}, sign * x) for sign in (1.0, -1.0))
    np.testing.assert_allclose(plus, -minus, rtol=1e-12)


def test_is_bounded_by_its_gain(x64):
    x = 100.0 * np.random.default_rng(0).normal(size=(3, 8))
    p = params()
    y = np.asarray(DynamicTanh().apply({"params": p}, x))
    assert np.all(np.abs(y - p["bias"]) <= np.abs(1 + p["gain"]) + 1e-12)


def test_is_linear_near_zero(x64):
    x = 1e-6 * np.random.default_rng(0).normal(size=(3, 8))
    p = params()
    y = np.asarray(DynamicTanh().apply({"params": p}, x)) - p["bias"]
    np.testing.assert_allclose(y, (1 + p["gain"]) * p["slope"] * x, rtol=1e-6)


def test_the_slope_gathers_its_gradient_from_every_element(x64):
    x, cotangent = np.random.default_rng(0).normal(size=(2, 3, 8))
    p = params()
    _, pull = jax.vjp(lambda p: DynamicTanh().apply({"params": p}, x), p)
    (gradient,) = pull(jnp.asarray(cotangent))
    curve = 1 - np.tanh(p["slope"] * x) ** 2
    wanted = np.sum(cotangent * (1 + p["gain"]) * x * curve)
    np.testing.assert_allclose(gradient["slope"], wanted, rtol=1e-10)
