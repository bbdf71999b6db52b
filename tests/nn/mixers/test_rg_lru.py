import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.nn.mixers.rg_lru import RecurrentGatedUnit, _root

DOUBLE = {"dtype": jnp.float64, "param_dtype": jnp.float64}


def converted(get, offset):
    """Parameters of `transformers`' RecurrentGemmaRecurrentBlock."""
    del offset

    def linear(name):
        return {"kernel": get(f"{name}.weight").T, "bias": get(f"{name}.bias")}

    tree = {
        "value": linear("linear_x"),
        "gate": linear("linear_y"),
        "output": linear("linear_out"),
        "value_convolution": {
            "taps": get("conv_1d.weight")[:, 0, ::-1].T,
            "bias": get("conv_1d.bias"),
        },
        "rate": get("rg_lru.recurrent_param"),
    }
    for name in ("input_gate", "recurrent_gate"):
        tree[f"{name}_kernel"] = get(f"rg_lru.{name}_weight")
        tree[f"{name}_bias"] = get(f"rg_lru.{name}_bias")
    return tree


def test_golden_layer(golden, assert_golden):
    module = RecurrentGatedUnit(use_bias=True, **DOUBLE)
    positions = np.tile(np.arange(9), (2, 1))
    assert_golden(module, golden("rg_lru_layer"), converted, positions=positions)


def test_without_positions_the_first_token_begins(x64):
    x = np.random.default_rng(0).normal(size=(1, 5, 8))
    module = RecurrentGatedUnit(heads=2, **DOUBLE)
    variables = module.init(jax.random.key(0), x)
    segments = np.array([[1, 1, 2, 2, 2]])
    wanted = module.apply(
        variables, x, segments=segments, positions=np.array([[0, 1, 0, 1, 2]])
    )[0]
    found = module.apply(variables, x, segments=segments)[0]
    np.testing.assert_array_equal(found, wanted)


def test_decays_start_in_the_documented_range():
    x = jnp.zeros((1, 1, 256))
    rate = RecurrentGatedUnit().init(jax.random.key(0), x)["params"]["rate"]
    square = np.exp(-2 * np.log1p(np.exp(np.asarray(rate, np.float64))))
    assert 0.81 <= square.min() < 0.83 < 0.97 < square.max() <= 0.9981


def test_the_slope_of_the_root_is_bounded():
    slopes = jax.vmap(jax.grad(_root))(jnp.array([0.0, 1e-9, 0.25]))
    np.testing.assert_allclose(slopes, [1000, 1000, 1], rtol=1e-5)


def test_refuses_heads_that_do_not_fit():
    with pytest.raises(ReslabError, match=r"heads: expected a divisor of the channels"):
        RecurrentGatedUnit(heads=5).init_state(1, 1, 16)
