import numpy as np
import pytest

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.nn.norms.fake_layer import FakeLayerNorm
from reslab.nn.norms.layer import LayerNorm


def params(features=8):
    gain, bias = np.random.default_rng(1).normal(size=(2, features))
    return {"gain": gain, "bias": bias}


def test_equation(x64):
    x, p = np.random.default_rng(0).normal(size=(3, 5, 8)), params()
    y = FakeLayerNorm(deviation=1.7).apply({"params": p}, x)
    centred = x - np.mean(x, axis=-1, keepdims=True)
    np.testing.assert_allclose(
        y, centred / 1.7 * (1 + p["gain"]) + p["bias"], rtol=1e-12
    )


def test_golden(golden_set, assert_golden):
    data = golden_set("fake_ln", "fake_")
    trained = golden_set("fake_ln", "real_")
    data |= {key: trained[key] for key in ("param_weight", "param_bias")}
    (deviation,) = set(data["std_used"].tolist())
    assert_golden(
        FakeLayerNorm(deviation=deviation),
        data,
        {"gain": "weight", "bias": "bias"},
        {"gain": 1.0},
    )


def test_before_its_removal_it_was_layer_norm(golden_set, assert_golden):
    assert_golden(
        LayerNorm(epsilon=1e-5),
        golden_set("fake_ln", "real_"),
        {"gain": "weight", "bias": "bias"},
        {"gain": 1.0},
    )


def test_is_layer_norm_of_inputs_of_that_deviation(x64):
    x = np.random.default_rng(0).normal(size=(3, 8))
    x *= 2.5 / np.std(x, axis=-1, keepdims=True)
    y = FakeLayerNorm(deviation=2.5).apply({"params": params()}, x)
    wanted = LayerNorm(epsilon=0.0).apply({"params": params()}, x)
    np.testing.assert_allclose(y, wanted, rtol=1e-9)


def test_is_affine_as_layer_norm_is_not(x64):
    x, other = np.random.default_rng(0).normal(size=(2, 3, 8))

    def difference(norm):
        def apply(x):
            return np.asarray(norm.apply({"params": params()}, x))

        mixed = 0.3 * apply(x) + 0.7 * apply(other)
        return np.max(np.abs(apply(0.3 * x + 0.7 * other) - mixed))

    assert difference(FakeLayerNorm(deviation=1.7)) < 1e-12
    assert difference(LayerNorm()) > 0.1


def test_centres_and_divides_without_a_bias_too(x64):
    x = np.random.default_rng(0).normal(size=(3, 8))
    norm = FakeLayerNorm(deviation=2.0, use_gain=False, use_bias=False)
    wanted = (x - np.mean(x, axis=-1, keepdims=True)) / 2.0
    np.testing.assert_allclose(norm.apply({}, x), wanted, rtol=1e-12)


@pytest.mark.parametrize("deviation", ["0.0", "-1.0"])
def test_refuses_a_deviation_that_is_not_above_zero(deviation):
    with pytest.raises(ReslabError, match=f"above 0 and at most .*; got {deviation}"):
        registry.make("norms", f"fake_layer(deviation={deviation})")
