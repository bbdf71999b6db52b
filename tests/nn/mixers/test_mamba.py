import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.nn.mixers.mamba import Mamba

DOUBLE = {"dtype": jnp.float64, "param_dtype": jnp.float64}


def converted(get, offset):
    """Parameters of the authors' module, of which `x_proj` holds three."""
    del offset
    states = get("A_log").shape[1]
    value, gate = np.split(get("in_proj.weight"), 2)
    down, key, query = np.split(get("x_proj.weight"), [-2 * states, -states])
    return {
        "value": {"kernel": value.T},
        "gate": {"kernel": gate.T},
        "value_convolution": {
            "taps": get("conv1d.weight")[:, 0, ::-1].T,
            "bias": get("conv1d.bias"),
        },
        "step_down": {"kernel": down.T},
        "key": {"kernel": key.T},
        "query": {"kernel": query.T},
        "step_up": {"kernel": get("dt_proj.weight").T},
        "step_bias": get("dt_proj.bias"),
        "log_rate": get("A_log"),
        "skip": get("D"),
        "output": {"kernel": get("out_proj.weight").T},
    }


def test_golden(golden, assert_golden):
    module = Mamba(state_size=4, **DOUBLE)
    assert_golden(module, golden("mamba1", "dev_"), converted, output="o")


def test_golden_step_by_step(golden, x64):
    arrays = golden("mamba1", "dev_")
    params = converted(lambda name: arrays[f"in_{name}"], 1)
    module = Mamba(state_size=4, **DOUBLE)
    x, state, parts = arrays["in_x"], module.init_state(2, 1, 8), []
    for t in range(x.shape[1]):
        y, _, state = module.apply({"params": params}, x[:, t : t + 1], state=state)
        parts.append(y)
    np.testing.assert_allclose(np.concatenate(parts, 1), arrays["step_o"], atol=1e-7)
    np.testing.assert_allclose(state["memory"], arrays["step_ssm_state"], atol=1e-7)
    tail = np.swapaxes(arrays["step_conv_state"][:, :, 1:], 1, 2)
    np.testing.assert_allclose(state["value"], tail, atol=1e-12)


def test_rates_start_as_whole_numbers():
    params = Mamba(state_size=3).init(jax.random.key(0), jnp.zeros((1, 1, 4)))["params"]
    np.testing.assert_allclose(np.exp(params["log_rate"][5]), [1, 2, 3], rtol=1e-6)
    assert params["step_down"]["kernel"].shape == (8, 1)


def test_refuses_an_expansion_without_channels():
    with pytest.raises(ReslabError, match="expansion: expected at least 1 / width"):
        Mamba(expansion=0.01).init_state(1, 1, 16)
