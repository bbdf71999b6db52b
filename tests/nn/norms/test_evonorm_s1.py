import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.nn.norms.evonorm_s0 import EvoNormS0
from reslab.nn.norms.evonorm_s1 import EvoNormS1


def params(channels=8):
    gain, bias = np.random.default_rng(1).normal(size=(2, channels))
    return {"gain": gain, "bias": bias}


def oracle(x, gain, bias, groups, epsilon):
    parts = [
        part
        / (1 + np.exp(-part))
        / np.sqrt(np.var(part, axis=-1, keepdims=True) + epsilon)
        for part in np.split(x, groups, axis=-1)
    ]
    return np.concatenate(parts, axis=-1) * (1 + gain) + bias


def test_equation_over_one_token(x64):
    x = np.random.default_rng(0).normal(size=(3, 5, 8))
    y = EvoNormS1(groups=2, epsilon=0.1).apply({"params": params()}, x)
    wanted = oracle(x, **params(), groups=2, epsilon=0.1)
    np.testing.assert_allclose(y, wanted, rtol=1e-10)


def test_golden_over_positions(golden, golden_set, assert_golden):
    data = golden_set("evonorm", "S1_train_")
    for key in ("x", "cot", "out", "grad_x"):
        data[key] = np.moveaxis(data[key], 1, -1)
    groups = int(golden("evonorm")["groups"])
    assert_golden(
        EvoNormS1(groups=groups, is_spatial=True, epsilon=1e-5),
        data,
        {"gain": "weight", "bias": "bias"},
        {"gain": 1.0},
    )


@pytest.mark.parametrize("is_spatial", [False, True])
def test_is_the_gated_one_with_slope_one(x64, is_spatial):
    x = np.random.default_rng(0).normal(size=(3, 5, 8))
    p = params()
    y = EvoNormS1(is_spatial=is_spatial).apply({"params": p}, x)
    gated = EvoNormS0(is_spatial=is_spatial)
    wanted = gated.apply({"params": p | {"slope": np.ones(8)}}, x)
    np.testing.assert_allclose(y, wanted, rtol=1e-12)


def test_sees_the_scale_of_its_input(x64):
    x = np.random.default_rng(0).normal(size=(3, 5, 8))
    norm = EvoNormS1(epsilon=0.0)
    y, scaled = (norm.apply({"params": params()}, s * x) for s in (1.0, 3.0))
    assert np.max(np.abs(y - scaled)) > 0.1


@pytest.mark.parametrize("is_spatial", [False, True])
def test_no_sample_sees_another(x64, is_spatial):
    x = np.random.default_rng(0).normal(size=(3, 5, 8))
    norm = EvoNormS1(is_spatial=is_spatial)
    whole = norm.apply({"params": params()}, x)
    alone = norm.apply({"params": params()}, x[1:2])
    np.testing.assert_array_equal(whole[1:2], alone)


def test_says_that_it_contains_the_activation():
    assert EvoNormS1.is_activation


def test_refuses_groups_that_do_not_fit():
    with pytest.raises(ReslabError, match="divisor of the 8 channels; got 3"):
        EvoNormS1(groups=3).init(jax.random.key(0), jnp.ones((2, 8)))
