"""LSTM and GRU with layer norms, against the authors' numbers; what cells share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.trees import named_leaves, unbox
from reslab.nn.mixers.gru import GRU
from reslab.nn.mixers.lstm import LSTM

DOUBLE = {"dtype": jnp.float64, "param_dtype": jnp.float64}
WIDTH, INPUTS = 6, 4


def wide(kernel):
    """The golden's input has four features, and the mixer's has six: two are 0."""
    return np.pad(kernel, ((0, WIDTH - INPUTS), (0, 0)))


def norm(get, cell, index, offset):
    gain, bias = get(f"{cell}_s{index}"), get(f"{cell}_b{index}")
    return {"gain": gain - offset, "bias": bias}


def lstm(get, offset):
    return {
        "layer_0_gates": {"kernel": wide(get("lstm_W"))},
        "layer_0_gates_bias": get("lstm_b"),
        "layer_0_gates_norm": norm(get, "lstm", 1, offset),
        "cell_0": {
            "kernel": get("lstm_U"),
            "hidden_norm": norm(get, "lstm", 2, offset),
            "cell_norm": norm(get, "lstm", 3, offset),
        },
    }


def gru(get, offset):
    return {
        "layer_0_gates": {"kernel": wide(get("gru_W"))},
        "layer_0_gates_bias": get("gru_b"),
        "layer_0_gates_norm": norm(get, "gru", 1, offset),
        "layer_0_write": {"kernel": wide(get("gru_Wx"))},
        "layer_0_write_bias": get("gru_bx"),
        "layer_0_write_norm": norm(get, "gru", 2, offset),
        "cell_0": {
            "gates_kernel": get("gru_U"),
            "write_kernel": get("gru_Ux"),
            "gates_norm": norm(get, "gru", 3, offset),
            "write_norm": norm(get, "gru", 4, offset),
        },
    }


def test_golden(golden, x64):
    arrays = golden("ln_rnn", "dev_")
    x = np.swapaxes(np.pad(arrays["in_x"], ((0, 0), (0, 0), (0, 2))), 0, 1)
    by_x = 0
    for build, convert, name in ((LSTM, lstm, "lnlstm"), (GRU, gru, "lngru")):
        params = convert(lambda name: arrays[f"in_{name}"], 1)
        params |= {"output": {"kernel": np.eye(WIDTH)}}
        module = build(**DOUBLE)
        wanted = unbox(jax.eval_shape(module.init, jax.random.key(0), x))["params"]
        assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, wanted)

        def run(params, x, module=module):
            return module.apply({"params": params}, x)[0]

        y, pull = jax.vjp(jax.jit(run), params, x)
        np.testing.assert_allclose(
            np.swapaxes(y, 0, 1), arrays[f"out_{name}_h"], atol=1e-10
        )
        slopes, one = pull(jnp.swapaxes(jnp.asarray(arrays[f"cot_{name}_h"]), 0, 1))
        by_x = by_x + one
        del slopes["output"]
        named = named_leaves(convert(lambda name: arrays[f"grad_{name}"], 0))
        for leaf, slope in named_leaves(slopes).items():
            np.testing.assert_allclose(slope, named[leaf], atol=1e-9, err_msg=leaf)
    wanted = np.swapaxes(arrays["grad_x"], 0, 1)
    np.testing.assert_allclose(by_x[..., :INPUTS], wanted, atol=1e-9)


@pytest.mark.parametrize("build", [LSTM, GRU])
def test_layers_stand_upon_each_other(build, x64):
    """Two layers are one layer that reads what another put out."""
    x = np.random.default_rng(0).normal(size=(2, 5, 4))
    module = build(hidden=3, layers=2, **DOUBLE)
    params = jax.jit(module.init)(jax.random.key(0), x)["params"]
    y = module.apply({"params": params}, x)[0]
    first, second = (
        {
            name.replace(f"_{layer}", "_0", 1): value
            for name, value in params.items()
            if f"_{layer}" in name
        }
        for layer in (0, 1)
    )
    first["output"] = {"kernel": np.eye(3, 4)}
    h = build(hidden=3, **DOUBLE).apply({"params": first}, x)[0][..., :3]
    second["output"] = {"kernel": np.eye(3)}
    h = build(hidden=3, **DOUBLE).apply({"params": second}, h)[0]
    np.testing.assert_allclose(h @ params["output"]["kernel"], y, atol=1e-12)
    assert len(module.init_state(1, 9, 4)) == 2 * len(module.kept)


def test_recurrent_kernels_start_orthogonal():
    params = LSTM().init(jax.random.key(0), jnp.zeros((1, 1, 8)))["params"]
    kernel = params["cell_0"]["kernel"]
    for gate in jnp.split(kernel, 4, axis=1):
        np.testing.assert_allclose(gate @ gate.T, np.eye(8), atol=1e-5)
