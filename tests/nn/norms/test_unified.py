import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.core.model_state import BATCH_STATS, GRADIENT_STATS
from reslab.nn.norms.power import PowerNorm
from reslab.nn.norms.unified import UnifiedNorm

CLOSE = {"rtol": 1e-7, "atol": 1e-9}


def state_of(data):
    return {
        BATCH_STATS: {
            "mean_square": data["buf_in_running_var"],
            "squares": data["buf_in_buffer_x2"],
            "updates": np.int32(data["buf_in_iters"].item()),
            "skipped": np.int32(0),
        },
        GRADIENT_STATS: {
            "products": data["buf_in_buffer_gz"],
            "product": data["buf_in_ema_gz"],
        },
    }


def fresh(window, channels=8, updates=0):
    return {
        BATCH_STATS: {
            "mean_square": np.ones(channels),
            "squares": np.zeros((window, channels)),
            "updates": np.int32(updates),
            "skipped": np.int32(0),
        },
        GRADIENT_STATS: {
            "products": np.zeros((window, channels)),
            "product": np.zeros(channels),
        },
    }


@pytest.mark.parametrize("run", ["", "late_"])
def test_golden_over_steps(trained, golden, run):
    """A cold start with a mask, and smoothed statistics with r other than 1."""
    whole = golden("unified_norm")
    data = {
        key.removeprefix(run): value
        for key, value in whole.items()
        if key.startswith("late_") == bool(run)
    }
    assert data["fp_window"] == data["bp_window"]
    norm = UnifiedNorm(
        window=int(data["fp_window"]),
        warmup=int(data["warmup_iters"]),
        is_filtering=bool(data["outlier_filtration"]),
    )
    params = {"gain": data["param_weight"] - 1.0, "bias": data["param_bias"]}
    shape = data["steps_x"].shape[1:3]
    mask = ~data["pad_mask_BN"] if "pad_mask_BN" in data else np.ones(shape, bool)
    state = state_of(data)
    for index in range(len(data["steps_x"])):
        y, gradient, x_gradient, state = trained(
            norm, params, state, data["steps_x"][index], data["steps_cot"][index], mask
        )
        batch, backward = state[BATCH_STATS], state[GRADIENT_STATS]
        for actual, name in (
            (y, "out"),
            (x_gradient, "grad_x"),
            (gradient["gain"], "grad_weight"),
            (gradient["bias"], "grad_bias"),
            (batch["mean_square"], "running_var_after"),
            (batch["squares"], "buffer_x2_after"),
            (backward["products"], "buffer_gz_after"),
            (backward["product"], "ema_gz_after"),
            (batch["skipped"], "skip_counter_after"),
            (batch["updates"], "iters_after"),
        ):
            np.testing.assert_allclose(
                actual,
                np.squeeze(data[f"steps_{name}"][index]),
                **CLOSE,
                err_msg=f"step {index}: {name}",
            )
    y, pull = jax.vjp(
        lambda params, x: norm.apply({"params": params, **state}, x),
        params,
        data["eval_x"],
    )
    gradient, x_gradient = pull(jnp.asarray(data["eval_cot"]))
    np.testing.assert_allclose(y, data["eval_out"], **CLOSE)
    np.testing.assert_allclose(x_gradient, data["eval_grad_x"], **CLOSE)
    np.testing.assert_allclose(gradient["gain"], data["eval_grad_weight"], **CLOSE)


def test_a_window_of_one_is_the_exact_derivative(trained):
    x, cotangent = np.random.default_rng(0).normal(size=(2, 4, 3, 8))
    mask = np.ones((4, 3), bool)
    ours = UnifiedNorm(window=1, epsilon=0.0, use_gain=False, use_bias=False)
    theirs = PowerNorm(
        is_running=False, groups=0, epsilon=0.0, use_gain=False, use_bias=False
    )
    exact = {
        BATCH_STATS: {"mean_square": np.ones(8), "updates": np.int32(0)},
    }
    y, _, x_gradient, _ = trained(ours, {}, fresh(1), x, cotangent, mask)
    wanted, _, wanted_x, _ = trained(theirs, {}, exact, x, cotangent, mask)
    np.testing.assert_allclose(y, wanted, rtol=1e-12)
    np.testing.assert_allclose(x_gradient, wanted_x, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("is_filtering", [False, True])
def test_an_outlier_is_left_out(trained, is_filtering):
    rng = np.random.default_rng(0)
    norm = UnifiedNorm(
        window=4, warmup=5, is_filtering=is_filtering, use_gain=False, use_bias=False
    )
    mask = np.ones((4, 6), bool)
    state = fresh(4, updates=2000)
    # The window holds what batches like these leave.
    state[BATCH_STATS]["squares"] = 1.0 + 0.3 * rng.random((4, 8))
    for _ in range(5):
        x, cotangent = rng.normal(size=(2, 4, 6, 8))
        *_, state = trained(norm, {}, state, x, cotangent, mask)
    skipped = int(state[BATCH_STATS]["skipped"])
    x, cotangent = rng.normal(size=(2, 4, 6, 8))
    before = state[BATCH_STATS]["mean_square"]
    y, _, _, after = trained(norm, {}, state, 1000.0 * x, cotangent, mask)
    slot = int(after[BATCH_STATS]["updates"]) % 4
    assert int(after[BATCH_STATS]["skipped"]) - skipped == is_filtering
    stays = np.array_equal(after[BATCH_STATS]["squares"][slot], before)
    assert stays == is_filtering
    if is_filtering:  # It is normalized by itself alone.
        wanted = x / np.sqrt(np.mean(np.square(x), axis=(0, 1)))
        np.testing.assert_allclose(y, wanted, rtol=1e-6)


def test_refuses_an_empty_window():
    with pytest.raises(ReslabError, match="window"):
        UnifiedNorm(window=0)
