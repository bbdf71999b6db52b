import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from reslab.core import registry
from reslab.core.trees import unbox
from reslab.nn.norms.derf import DynamicErf


def params(shift=0.3, features=8):
    rng = np.random.default_rng(1)
    gain, bias = rng.normal(size=(2, features))
    slope, shift = np.float64(0.7), np.float64(shift)
    return {"slope": slope, "shift": shift, "gain": gain, "bias": bias}


def test_equation(x64):
    x = np.random.default_rng(0).normal(size=(3, 5, 8))
    p = params()
    y = DynamicErf().apply({"params": p}, x)
    wanted = erf(p["slope"] * x + p["shift"]) * (1 + p["gain"]) + p["bias"]
    np.testing.assert_allclose(y, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("start", ["init", "rand"])
def test_golden(golden_set, assert_golden, start):
    assert_golden(
        DynamicErf(),
        golden_set("derf", f"{start}_"),
        {"slope": "alpha", "shift": "shift", "gain": "weight", "bias": "bias"},
        {"gain": 1.0},
    )


@pytest.mark.parametrize(("spec", "slope"), [("derf", 0.5), ("derf(alpha=1.0)", 1.0)])
def test_starts_at_the_slope_asked_for_without_shift(spec, slope):
    norm = registry.make("norms", spec)
    y, variables = norm.init_with_output(jax.random.key(0), jnp.ones((2, 4)))
    assert unbox(variables)["params"]["slope"].shape == ()
    np.testing.assert_allclose(y, erf(slope), rtol=1e-6)


def test_is_odd_but_for_shift_and_bias(x64):
    x = np.random.default_rng(0).normal(size=(3, 8))
    norm, p = DynamicErf(use_bias=False), params(shift=0.0)
    del p["bias"]
    plus, minus = (norm.apply({"params": p}, sign * x) for sign in (1.0, -1.0))
    np.testing.assert_allclose(plus, -minus, rtol=1e-12)
    p["shift"] = np.float64(0.3)
    plus, minus = (norm.apply({"params": p}, sign * x) for sign in (1.0, -1.0))
    assert np.max(np.abs(plus + minus)) > 0.1


def test_is_bounded_by_its_gain(x64):
    x = 100.0 * np.random.default_rng(0).normal(size=(3, 8))
    p = params()
    y = np.asarray(DynamicErf().apply({"params": p}, x))
    assert np.all(np.abs(y - p["bias"]) <= np.abs(1 + p["gain"]) + 1e-12)


def test_is_linear_near_zero(x64):
    x = 1e-6 * np.random.default_rng(0).normal(size=(3, 8))
    p = params(shift=0.0)
    y = np.asarray(DynamicErf().apply({"params": p}, x)) - p["bias"]
    slope = 2 / np.sqrt(np.pi) * p["slope"]
    np.testing.assert_allclose(y, (1 + p["gain"]) * slope * x, rtol=1e-6)
