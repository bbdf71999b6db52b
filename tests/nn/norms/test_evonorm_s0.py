import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.nn.norms.evonorm_s0 import EvoNormS0


def params(channels=8):
    gain, bias, slope = np.random.default_rng(1).normal(size=(3, channels))
    return {"gain": gain, "bias": bias, "slope": slope}


def oracle(x, gain, bias, slope, groups, epsilon):
    parts = [
        part / np.sqrt(np.var(part, axis=-1, keepdims=True) + epsilon)
        for part in np.split(x, groups, axis=-1)
    ]
    gate = 1 / (1 + np.exp(-slope * x))
    return np.concatenate(parts, axis=-1) * gate * (1 + gain) + bias


def test_equation_over_one_token(x64):
    x = np.random.default_rng(0).normal(size=(3, 5, 8))
    y = EvoNormS0(groups=2, epsilon=0.1).apply({"params": params()}, x)
    wanted = oracle(x, **params(), groups=2, epsilon=0.1)
    np.testing.assert_allclose(y, wanted, rtol=1e-10)


def test_golden_over_positions(golden, golden_set, assert_golden):
    data = golden_set("evonorm", "S0_train_")
    for key in ("x", "cot", "out", "grad_x"):
        data[key] = np.moveaxis(data[key], 1, -1)
    groups = int(golden("evonorm")["groups"])
    assert_golden(
        EvoNormS0(groups=groups, is_spatial=True, epsilon=1e-5),
        data,
        {"gain": "weight", "bias": "bias", "slope": "v"},
        {"gain": 1.0},
    )


@pytest.mark.parametrize("is_spatial", [False, True])
def test_the_slope_undoes_the_scale_of_the_input(x64, is_spatial):
    x = np.random.default_rng(0).normal(size=(3, 5, 8))
    norm = EvoNormS0(is_spatial=is_spatial, epsilon=0.0)
    p = params()
    y = norm.apply({"params": p}, x)
    flatter = p | {"slope": p["slope"] / 3.0}
    np.testing.assert_allclose(norm.apply({"params": flatter}, 3.0 * x), y, rtol=1e-9)
    assert np.max(np.abs(norm.apply({"params": p}, 3.0 * x) - y)) > 0.1


@pytest.mark.parametrize("is_spatial", [False, True])
def test_no_sample_sees_another(x64, is_spatial):
    x = np.random.default_rng(0).normal(size=(3, 5, 8))
    norm = EvoNormS0(is_spatial=is_spatial)
    whole = norm.apply({"params": params()}, x)
    alone = norm.apply({"params": params()}, x[1:2])
    np.testing.assert_array_equal(whole[1:2], alone)


def test_starts_as_a_gate_of_slope_one():
    x = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    norm = EvoNormS0(groups=1)
    y, _ = norm.init_with_output(jax.random.key(0), x)
    wanted = oracle(x.astype(np.float64), 0.0, 0.0, 1.0, 1, 1e-5)
    np.testing.assert_allclose(y, wanted, rtol=1e-5)


def test_says_that_it_contains_the_activation():
    assert EvoNormS0.is_activation


def test_refuses_groups_that_do_not_fit():
    with pytest.raises(ReslabError, match="divisor of the 8 channels; got 3"):
        EvoNormS0(groups=3).init(jax.random.key(0), jnp.ones((2, 8)))
