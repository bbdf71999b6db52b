import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.core.model_state import BATCH_STATS
from reslab.nn.norms.layer import LayerNorm
from reslab.nn.norms.progressive_rep_batch import ProgressiveRepBatchNorm

CLOSE = {"rtol": 1e-7, "atol": 1e-9}


@pytest.fixture
def data(golden):
    whole = golden("prepbn")
    return {
        key.removeprefix("prepbn_"): value
        for key, value in whole.items()
        if key.startswith("prepbn_")
    }


@pytest.fixture
def norm(data):
    return ProgressiveRepBatchNorm(
        transition=int(data["step"]),
        warmup=int(data["warm"]),
        first="layer(epsilon=1e-5)",
    )


@pytest.fixture
def params(data):
    return {
        "first": {
            "gain": data["param_norm1_weight"] - 1.0,
            "bias": data["param_norm1_bias"],
        },
        "gain": data["param_norm2_bn_weight"] - 1.0,
        "bias": data["param_norm2_bn_bias"],
        "skip": data["param_norm2_alpha"],
    }


@pytest.fixture
def start():
    return {
        BATCH_STATS: {
            "steps": np.int32(0),
            "updates": np.int32(0),
            "mean": np.zeros(8),
            "variance": np.ones(8),
        }
    }


def test_golden_over_the_whole_schedule(trained, data, norm, params, start):
    state = start
    mask = np.ones(data["steps_x"].shape[1:3], bool)
    for index, (x, cotangent) in enumerate(
        zip(data["steps_x"], data["steps_cot"], strict=True)
    ):
        y, gradient, x_gradient, state = trained(
            norm, params, state, x, cotangent, mask
        )
        for actual, name in (
            (y, "out"),
            (x_gradient, "grad_x"),
            (gradient["first"]["gain"], "grad_norm1_weight"),
            (gradient["first"]["bias"], "grad_norm1_bias"),
            (gradient["gain"], "grad_norm2_bn_weight"),
            (gradient["bias"], "grad_norm2_bn_bias"),
            (gradient["skip"], "grad_norm2_alpha"),
        ):
            np.testing.assert_allclose(
                actual, data[f"steps_{name}"][index], **CLOSE, err_msg=f"{index} {name}"
            )
    statistics = state[BATCH_STATS]
    np.testing.assert_allclose(statistics["mean"], data["running_mean_end"], **CLOSE)
    np.testing.assert_allclose(statistics["variance"], data["running_var_end"], **CLOSE)
    assert statistics["steps"] == len(data["steps_x"])

    def apply(params, x):
        return norm.apply({"params": params, **state}, x)

    y, pull = jax.vjp(apply, params, data["eval_x"])
    gradient, x_gradient = pull(jnp.asarray(data["eval_cot"]))
    np.testing.assert_allclose(y, data["eval_out"], **CLOSE)
    np.testing.assert_allclose(x_gradient, data["eval_grad_x"], **CLOSE)
    np.testing.assert_allclose(gradient["skip"], data["eval_grad_norm2_alpha"], **CLOSE)


def test_begins_as_the_first_norm(trained, data, norm, params, start):
    x, cotangent = data["steps_x"][0], data["steps_cot"][0]
    mask = np.ones(x.shape[:2], bool)
    y, gradient, _, after = trained(norm, params, start, x, cotangent, mask)
    layer = LayerNorm(epsilon=1e-5).apply({"params": params["first"]}, x)
    np.testing.assert_allclose(y, layer, rtol=1e-12)
    for name in ("gain", "bias", "skip"):
        np.testing.assert_array_equal(gradient[name], 0.0)
    assert after[BATCH_STATS]["updates"] == 0, "the warmup touches no statistics"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [({"transition": 0}, "transition"), ({"warmup": -1}, "warmup")],
)
def test_refuses_a_schedule_without_end(arguments, told):
    with pytest.raises(ReslabError, match=told):
        ProgressiveRepBatchNorm(**arguments)


def test_golden_schedule_of_sixteen_passes(golden, x64):
    """Their counters before each of 96 passes, and the share that they make."""
    trace = golden("prepbn_llama")["schedule_trace_warm_iter_numstep_before_after"]
    warm, total = trace[0, 0], trace[0, 1]
    norm = ProgressiveRepBatchNorm(
        transition=int(total), warmup=int(warm), every=16, first="none"
    )
    x, mask = jnp.asarray([[[1.0, -2.0]], [[3.0, 4.0]]]), jnp.ones((2, 1), bool)
    # RepBN is silent, and the first norm returns its input: shares are all one sees.
    params = {"gain": -jnp.ones(2), "bias": jnp.zeros(2), "skip": jnp.zeros(1)}
    statistics = {"mean": jnp.zeros(2), "variance": jnp.ones(2)}
    counters = {"steps": jnp.int32(0), "updates": jnp.int32(0)}

    @jax.jit
    def passes(state):
        def step(state, _):
            variables = {"params": params, BATCH_STATS: state}
            y, after = norm.apply(variables, x, mask, mutable=[BATCH_STATS])
            return after[BATCH_STATS], (y / x, after[BATCH_STATS]["variance"])

        return jax.lax.scan(step, state, length=len(trace))

    _, (shares, variances) = passes(statistics | counters)
    is_warm = trace[:, 0] > 0
    wanted = np.where(is_warm, 1.0, trace[:, 1] / total)
    found = np.reshape(shares, (len(trace), -1))
    np.testing.assert_allclose(found, np.stack([wanted] * 4, 1), rtol=1e-12)
    assert set(np.round(wanted * total)) == {0, 1, 2, 3}
    # Statistics begin to move with the first pass that is not warm.
    has_moved = np.any(np.asarray(variances) != 1, axis=1)
    np.testing.assert_array_equal(has_moved, ~is_warm)
