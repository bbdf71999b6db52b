"""LSTM and GRU against a transcription of the authors' first code, with padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.trees import named_leaves
from reslab.nn.mixers.gru import GRU
from reslab.nn.mixers.lstm import LSTM

WIDTH, INPUTS = 5, 3
# Names in the golden of each kernel, bias and norm here.
NAMES = {
    "lstm": {
        "layer_0_gates/kernel": "W",
        "layer_0_gates_bias": "b",
        "layer_0_gates_norm": "1",
        "cell_0/kernel": "U",
        "cell_0/hidden_norm": "2",
        "cell_0/cell_norm": "3",
    },
    "gru": {
        "layer_0_gates/kernel": "W",
        "layer_0_gates_bias": "b",
        "layer_0_gates_norm": "1",
        "layer_0_write/kernel": "Wx",
        "layer_0_write_bias": "bx",
        "layer_0_write_norm": "2",
        "cell_0/gates_kernel": "U",
        "cell_0/write_kernel": "Ux",
        "cell_0/gates_norm": "3",
        "cell_0/write_norm": "4",
    },
}


def leaves(get, kind, offset):
    """Arrays of the golden by our names; kernels of inputs are padded to the width."""
    found = {}
    for name, theirs in NAMES[kind].items():
        if name.endswith("norm"):
            found[f"{name}/gain"] = get(f"s{theirs}") - offset
            found[f"{name}/bias"] = get(f"b{theirs}")
        elif name.startswith("layer_0") and name.endswith("kernel"):
            found[name] = np.pad(get(theirs), ((0, WIDTH - INPUTS), (0, 0)))
        else:
            found[name] = get(theirs)
    return found


def nested(flat):
    tree = {}
    for name, leaf in flat.items():
        *path, last = name.split("/")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = leaf
    return tree


@pytest.mark.parametrize(("kind", "build"), [("lstm", LSTM), ("gru", GRU)])
def test_golden_of_the_transcription(golden, x64, kind, build):
    """Masked tokens leave the state alone, and their output is the one before."""
    head = f"dev_{kind}_"
    data = {
        key.removeprefix(head): value
        for key, value in golden("ln_rnn_transcribed").items()
        if key.startswith(head)
    }
    rows = np.swapaxes(data["x"], 0, 1)
    mask = np.swapaxes(data["mask"], 0, 1) > 0
    x = np.pad(rows, ((0, 0), (0, 0), (0, WIDTH - INPUTS)))
    module = build(dtype=jnp.float64, param_dtype=jnp.float64)
    state = module.init_state(*x.shape)
    params = nested(leaves(lambda name: data[f"param_{name}"], kind, 1))
    params["output"] = {"kernel": np.eye(WIDTH)}

    def run(params, x):
        y, *_ = module.apply(
            {"params": params}, x, segments=mask.astype(np.int32), state=state
        )
        before = jnp.pad(y, ((0, 0), (1, 0), (0, 0)))[:, :-1]
        return jnp.where(mask[..., None], y, before)

    y, pull = jax.vjp(jax.jit(run), params, jnp.asarray(x))
    slopes, by_x = pull(jnp.swapaxes(jnp.asarray(data["cot"]), 0, 1))
    np.testing.assert_allclose(jnp.swapaxes(y, 0, 1), data["out"], atol=1e-10)
    wanted = np.swapaxes(data["grad_x"], 0, 1)
    np.testing.assert_allclose(by_x[..., :INPUTS], wanted, atol=1e-9)
    del slopes["output"]
    found = named_leaves(slopes)
    wanted = leaves(lambda name: data[f"grad_{name}"], kind, 0)
    assert found.keys() == wanted.keys()
    for name, slope in wanted.items():
        if name.startswith("layer_0") and name.endswith("kernel"):
            # Padding of the inputs reads zeros, so its kernel has no gradient.
            assert not np.any(np.asarray(found[name])[INPUTS:])
        np.testing.assert_allclose(found[name], slope, atol=1e-9, err_msg=name)
