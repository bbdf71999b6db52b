import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.model_state import BATCH_STATS
from reslab.nn.norms.batch import BatchNorm
from reslab.nn.norms.rep_batch import RepBatchNorm

CLOSE = {"rtol": 1e-7, "atol": 1e-9}


def params_of(data):
    return {
        "gain": data["param_bn_weight"] - 1.0,
        "bias": data["param_bn_bias"],
        "skip": data["param_alpha"],
    }


def assert_gradients(gradient, data):
    np.testing.assert_allclose(gradient["gain"], data["grad_bn_weight"], **CLOSE)
    np.testing.assert_allclose(gradient["bias"], data["grad_bn_bias"], **CLOSE)
    np.testing.assert_allclose(gradient["skip"], data["grad_alpha"], **CLOSE)


def statistics(mean, variance):
    return {BATCH_STATS: {"mean": mean, "variance": variance, "updates": np.int32(1)}}


@pytest.fixture
def vision(golden):
    return golden("prepbn")


def part(data, prefix):
    return {k.removeprefix(prefix): v for k, v in data.items() if k.startswith(prefix)}


def test_golden_for_images(trained, vision):
    data = part(vision, "repbn_train_")
    mask = np.ones(data["x"].shape[:2], bool)
    state = statistics(vision["repbn_running_mean_in"], vision["repbn_running_var_in"])
    y, gradient, x_gradient, after = trained(
        RepBatchNorm(), params_of(data), state, data["x"], data["cot"], mask
    )
    np.testing.assert_allclose(y, data["out"], **CLOSE)
    np.testing.assert_allclose(x_gradient, data["grad_x"], **CLOSE)
    assert_gradients(gradient, data)
    for ours, theirs in (("mean", "mean"), ("variance", "var")):
        np.testing.assert_allclose(
            after[BATCH_STATS][ours], vision[f"repbn_running_{theirs}_out"], **CLOSE
        )


def test_golden_evaluated(x64, vision):
    data = part(vision, "repbn_eval_")
    params = params_of(part(vision, "repbn_train_"))
    state = statistics(
        vision["repbn_running_mean_out"], vision["repbn_running_var_out"]
    )

    def apply(params, x):
        return RepBatchNorm().apply({"params": params, **state}, x)

    y, pull = jax.vjp(apply, params, data["x"])
    gradient, x_gradient = pull(jnp.asarray(data["cot"]))
    np.testing.assert_allclose(y, data["out"], **CLOSE)
    np.testing.assert_allclose(x_gradient, data["grad_x"], **CLOSE)
    assert_gradients(gradient, data)


def test_golden_masked(trained, golden):
    whole = golden("prepbn_llama")
    data = part(whole, "repbn_masked_train_")
    state = statistics(np.zeros(8), np.ones(8))
    y, _, x_gradient, after = trained(
        RepBatchNorm(epsilon=1e-6),
        params_of(data),
        state,
        data["x"],
        data["cot"],
        whole["attention_mask_BT"].astype(bool),
    )
    mask = whole["attention_mask_BT"].astype(bool)
    # The authors' padding is x + skip * x: gain and bias do not touch it.
    np.testing.assert_allclose(np.asarray(y)[mask], data["out"][mask], **CLOSE)
    np.testing.assert_allclose(
        np.asarray(x_gradient)[mask], data["grad_x"][mask], **CLOSE
    )
    for ours, theirs in (("mean", "mean"), ("variance", "var")):
        np.testing.assert_allclose(
            after[BATCH_STATS][ours], whole[f"repbn_running_{theirs}_out"], **CLOSE
        )


@pytest.mark.parametrize("start", [0.0, 1.0])
def test_starts_as_asked(start):
    x = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    norm = RepBatchNorm(initial_gain=0.0, initial_skip=start)
    y, _ = norm.init_with_output(jax.random.key(0), x)
    np.testing.assert_allclose(y, start * x, rtol=1e-6)


def test_without_skip_is_batch_norm(trained):
    x, cotangent = np.random.default_rng(0).normal(size=(2, 4, 6))
    params = {"gain": np.full(6, 0.3), "bias": np.full(6, 0.1)}
    state = statistics(np.zeros(6), np.ones(6))
    plain = trained(BatchNorm(), params, state, x, cotangent)
    rep = trained(RepBatchNorm(), params | {"skip": np.zeros(1)}, state, x, cotangent)
    np.testing.assert_array_equal(rep[0], plain[0])
    np.testing.assert_array_equal(rep[2], plain[2])
