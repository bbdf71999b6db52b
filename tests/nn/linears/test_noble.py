import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.core.trees import unbox
from reslab.nn.linears.dense import Dense
from reslab.nn.linears.noble import NOBLE


@pytest.mark.parametrize("case", ["dev"])
def test_golden(golden_set, assert_golden, case):
    data = golden_set("noble", f"{case}_official_")

    def parameters(prefix):
        def take(name):
            return data[f"{prefix}{name}"].T

        return {
            "kernel": take("W"),
            "bias": take("b"),
            "down": {"kernel": take("Wd"), "bias": take("bd")},
            "first_frequency": take("f1"),
            "first_phase": take("p1"),
            "middle": {"kernel": take("M")},
            "middle_bias": take("bM"),
            "second_frequency": take("f2"),
            "second_phase": take("p2"),
            "up": {"kernel": take("Wu")},
        }

    outputs, rank = data["p_Wu"].shape
    assert_golden(NOBLE(outputs, use_bias=True, rank=rank), data, parameters)


@pytest.mark.parametrize("case", ["dev"])
def test_golden_without_biases_in_the_branch(golden_set, assert_golden, case):
    data = golden_set("noble", f"{case}_nanoplm_")

    def parameters(prefix):
        def take(name):
            return data[f"{prefix}{name}"].T

        return {
            "kernel": take("linear_weight"),
            "bias": take("linear_bias"),
            "down": {"kernel": take("W_down_weight")},
            "first_frequency": take("cosnet_omega1"),
            "first_phase": take("cosnet_phi1"),
            "middle": {"kernel": take("cosnet_M")},
            "second_frequency": take("cosnet_omega2"),
            "second_phase": take("cosnet_phi2"),
            "up": {"kernel": take("noble_w_up_weight")},
        }

    outputs, rank = data["p_noble_w_up_weight"].shape
    noble = NOBLE(outputs, use_bias=True, rank=rank, use_branch_bias=False)
    assert_golden(noble, data, parameters)


def start(module, x):
    return unbox(module.init(jax.random.key(0), x))["params"]


def test_without_the_way_up_it_is_dense():
    x = jax.random.normal(jax.random.key(1), (2, 3, 8))
    params = start(NOBLE(6, rank=4), x)
    dense = Dense(6).apply({"params": {"kernel": params["kernel"]}}, x)
    silent = {**params, "up": {"kernel": jnp.zeros((4, 6))}}
    y = NOBLE(6, rank=4).apply({"params": silent}, x)
    np.testing.assert_array_equal(y, dense)
    changed = NOBLE(6, rank=4).apply({"params": params}, x) - dense
    assert 0 < np.max(np.abs(changed)) < 0.1


def test_the_branch_is_bounded_whatever_the_input():
    x = 1e4 * jax.random.normal(jax.random.key(1), (64, 8))
    params = start(NOBLE(6, rank=4), x)
    silent = {**params, "kernel": jnp.zeros((8, 6))}
    y = NOBLE(6, rank=4).apply({"params": silent}, x)
    bound = np.sum(np.abs(params["up"]["kernel"]), axis=0)
    assert np.all(np.abs(y) <= bound * (1 + 1e-6))


def test_starts_as_the_author_does():
    params = start(NOBLE(256, rank=64, use_bias=True), jnp.ones((1, 128)))
    for name, wanted in {
        "kernel": 0.5 / 128**0.5,
        "first_phase": 0.1,
        "first_frequency": 0.4 / 12**0.5,
        "middle_bias": 2 / 8 / 12**0.5,
    }.items():
        assert np.std(params[name]) == pytest.approx(wanted, rel=0.3), name
    for name, wanted in {
        "down": 1 / 128**0.5,
        "middle": 0.5 / 8,
        "up": 0.01 / 8,
    }.items():
        assert np.std(params[name]["kernel"]) == pytest.approx(wanted, rel=0.05), name
    assert np.all(np.abs(params["second_frequency"] - 1) <= 0.2)


def test_refuses_no_rank():
    with pytest.raises(ReslabError, match="rank: expected at least 1; got 0"):
        NOBLE(4, rank=0)
