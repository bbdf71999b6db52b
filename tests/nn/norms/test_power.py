import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.core.model_state import BATCH_STATS, GRADIENT_STATS
from reslab.nn.norms.power import PowerNorm

CLOSE = {"rtol": 1e-7, "atol": 1e-9}


def start(channels):
    return {
        BATCH_STATS: {"mean_square": np.ones(channels), "updates": np.int32(0)},
        GRADIENT_STATS: {"noise": np.zeros(channels)},
    }


@pytest.fixture
def data(golden):
    return golden("powernorm")


@pytest.fixture
def norm(data):
    return PowerNorm(groups=int(data["group_num"]), warmup=int(data["warmup_iters"]))


@pytest.fixture
def params(data):
    return {"gain": data["param_weight"] - 1.0, "bias": data["param_bias"]}


def test_golden_over_steps(trained, data, norm, params):
    state, mask = start(8), ~data["pad_mask_BT"]
    for index in range(len(data["steps_x"])):
        # Theirs is (length, batch, channels).
        x, cotangent, wanted, wanted_x = (
            np.swapaxes(data[f"steps_{name}"][index], 0, 1)
            for name in ("x", "cot", "out", "grad_x")
        )
        y, gradient, x_gradient, state = trained(
            norm, params, state, x, cotangent, mask
        )
        for actual, expected in (
            (y, wanted),
            (x_gradient, wanted_x),
            (gradient["gain"], data["steps_grad_weight"][index]),
            (gradient["bias"], data["steps_grad_bias"][index]),
            (
                state[BATCH_STATS]["mean_square"],
                data["steps_running_phi_after"][index],
            ),
            (state[GRADIENT_STATS]["noise"], data["steps_ema_gz_after"][index]),
        ):
            np.testing.assert_allclose(actual, expected, **CLOSE, err_msg=str(index))

    def apply(params, x):
        return norm.apply({"params": params, **state}, x)

    x, cotangent, wanted, wanted_x = (
        np.swapaxes(data[f"eval_{name}"], 0, 1)
        for name in ("x", "cot", "out", "grad_x")
    )
    y, pull = jax.vjp(apply, params, x)
    gradient, x_gradient = pull(jnp.asarray(cotangent))
    np.testing.assert_allclose(y, wanted, **CLOSE)
    np.testing.assert_allclose(x_gradient, wanted_x, **CLOSE)
    np.testing.assert_allclose(gradient["gain"], data["eval_grad_weight"], **CLOSE)


def test_the_exact_derivative_of_the_batch(trained, data, params):
    x, cotangent, wanted, wanted_x = (
        np.swapaxes(data[f"pnv_derived_{name}"], 0, 1)
        for name in ("x", "cot", "out", "grad_x")
    )
    norm = PowerNorm(is_running=False, groups=0)
    state = {BATCH_STATS: start(8)[BATCH_STATS]}
    mask = np.ones(x.shape[:2], bool)
    y, gradient, x_gradient, after = trained(norm, params, state, x, cotangent, mask)
    np.testing.assert_allclose(y, wanted, **CLOSE)
    np.testing.assert_allclose(x_gradient, wanted_x, **CLOSE)
    np.testing.assert_allclose(
        gradient["gain"], data["pnv_derived_grad_weight"], **CLOSE
    )
    assert GRADIENT_STATS not in after


def test_group_scaling(x64, data):
    norm = PowerNorm(
        groups=int(data["groupscaling_group_num"]), use_gain=False, use_bias=False
    )
    state = start(8)
    state[BATCH_STATS]["mean_square"] = np.full(8, 1.0 - norm.epsilon)
    y, pull = jax.vjp(lambda x: norm.apply(state, x), data["groupscaling_x"])
    np.testing.assert_allclose(y, data["groupscaling_out"], **CLOSE)
    (x_gradient,) = pull(jnp.asarray(data["groupscaling_cot"]))
    np.testing.assert_allclose(x_gradient, data["groupscaling_grad_x"], **CLOSE)


def test_padding_reaches_only_the_running_gradient(trained, data, norm, params):
    mask = ~data["pad_mask_BT"]
    x, cotangent = (
        np.swapaxes(data[f"steps_{name}"][0], 0, 1) for name in ("x", "cot")
    )
    before = trained(norm, params, start(8), x, cotangent, mask)
    x = np.where(mask[..., None], x, 7.0 + np.arange(8.0))
    after = trained(norm, params, start(8), x, cotangent, mask)
    np.testing.assert_array_equal(
        np.asarray(before[0])[mask], np.asarray(after[0])[mask]
    )
    np.testing.assert_array_equal(
        before[3][BATCH_STATS]["mean_square"], after[3][BATCH_STATS]["mean_square"]
    )
    assert np.any(
        before[3][GRADIENT_STATS]["noise"] != after[3][GRADIENT_STATS]["noise"]
    )


@pytest.mark.parametrize("groups", [3, -1])
def test_refuses_groups_that_do_not_fit(groups):
    with pytest.raises(ReslabError, match=r"divisor of the 8|least 0"):
        PowerNorm(groups=groups).init(jax.random.key(0), jnp.ones((2, 8)))
