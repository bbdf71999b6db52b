import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.model_state import BATCH_STATS
from reslab.nn.norms.evonorm_b0 import EvoNormB0
from reslab.nn.norms.evonorm_b1 import EvoNormB1

CLOSE = {"rtol": 1e-7, "atol": 1e-9}
KINDS = {
    "B0": (EvoNormB0(), {"gain": "weight", "bias": "bias", "slope": "v"}),
    "B1": (EvoNormB1(), {"gain": "weight", "bias": "bias"}),
}


@pytest.fixture(params=KINDS)
def kind(request, golden):
    norm, keys = KINDS[request.param]
    prefix = f"{request.param}_"
    data = {
        key.removeprefix(prefix): value if value.ndim < 4 else np.moveaxis(value, 1, -1)
        for key, value in golden("evonorm").items()
        if key.startswith(prefix)
    }
    params = {
        name: data[f"train_param_{key}"] - (name == "gain")
        for name, key in keys.items()
    }
    # Not stored for B1, but for the rule that led from it to the stored one.
    batch = np.var(data["train_x"], axis=(0, 1, 2))
    running = (data["running_var_out_tf"] - 0.1 * batch) / 0.9
    state = {BATCH_STATS: {"variance": running, "updates": np.int32(1)}}
    return norm, keys, data, params, state


def test_golden_trained(trained, kind):
    norm, keys, data, params, state = kind
    y, gradient, x_gradient, after = trained(
        norm, params, state, data["train_x"], data["train_cot"]
    )
    np.testing.assert_allclose(y, data["train_out"], **CLOSE)
    np.testing.assert_allclose(x_gradient, data["train_grad_x"], **CLOSE)
    for name, key in keys.items():
        np.testing.assert_allclose(gradient[name], data[f"train_grad_{key}"], **CLOSE)
    np.testing.assert_allclose(
        after[BATCH_STATS]["variance"], data["running_var_out_tf"], **CLOSE
    )


def test_the_port_keeps_an_unbiased_variance(kind):
    _, _, data, _, state = kind
    number = data["train_x"].size // 8
    batch = np.var(data["train_x"], axis=(0, 1, 2)) * number / (number - 1)
    theirs = 0.9 * state[BATCH_STATS]["variance"] + 0.1 * batch
    np.testing.assert_allclose(theirs, data["running_var_out_timm"], **CLOSE)


def test_golden_evaluated(x64, kind):
    norm, keys, data, params, state = kind

    def apply(params, x):
        return norm.apply({"params": params, **state}, x)

    y, pull = jax.vjp(apply, params, data["eval_x"])
    gradient, x_gradient = pull(jnp.asarray(data["eval_cot"]))
    np.testing.assert_allclose(y, data["eval_out"], **CLOSE)
    np.testing.assert_allclose(x_gradient, data["eval_grad_x"], **CLOSE)
    for name, key in keys.items():
        np.testing.assert_allclose(gradient[name], data[f"eval_grad_{key}"], **CLOSE)


def test_the_scale_of_a_batch(trained):
    """B0 does not see it, B1 does."""
    rng = np.random.default_rng(0)
    x, cotangent = rng.normal(size=(2, 3, 4, 4, 8))
    state = {BATCH_STATS: {"variance": np.ones(8), "updates": np.int32(0)}}
    row = rng.normal(size=8)
    for norm, params, is_same in (
        (EvoNormB0(epsilon=0.0), {"gain": row, "bias": row, "slope": row}, True),
        (EvoNormB1(epsilon=0.0), {"gain": row, "bias": row}, False),
    ):
        one = trained(norm, params, state, x, cotangent)[0]
        three = trained(norm, params, state, 3.0 * x, cotangent)[0]
        assert np.allclose(one, three, rtol=1e-9) == is_same
