"""The encoder layer of S-Mamba is the standard layer, of parts by their names."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from reslab.core import registry
from reslab.core.surroundings import Context
from reslab.core.trees import named_leaves, unbox

GOLDEN = pathlib.Path(__file__).parents[2] / "goldens" / "s_mamba_layer.npz"
WIDE = {"dtype": jnp.float64, "param_dtype": jnp.float64}


def mamba(get, way):
    states = get(f"{way}.A_log").shape[1]
    value, gate = np.split(get(f"{way}.in_proj.weight"), 2)
    down, key, query = np.split(get(f"{way}.x_proj.weight"), [-2 * states, -states])
    return {
        "value": {"kernel": value.T},
        "gate": {"kernel": gate.T},
        "value_convolution": {
            "taps": get(f"{way}.conv1d.weight")[:, 0, ::-1].T,
            "bias": get(f"{way}.conv1d.bias"),
        },
        "step_down": {"kernel": down.T},
        "key": {"kernel": key.T},
        "query": {"kernel": query.T},
        "step_up": {"kernel": get(f"{way}.dt_proj.weight").T},
        "step_bias": get(f"{way}.dt_proj.bias"),
        "log_rate": get(f"{way}.A_log"),
        "skip": get(f"{way}.D"),
        "output": {"kernel": get(f"{way}.out_proj.weight").T},
    }


def converted(get, offset):
    def linear(name):
        return {"kernel": get(f"{name}.weight")[..., 0].T, "bias": get(f"{name}.bias")}

    def norm(name):
        gain = get(f"{name}.weight") - offset
        return {"stream_norm": {"gain": gain, "bias": get(f"{name}.bias")}}

    return {
        "mixer": {"forward": mamba(get, "fwd"), "backward": mamba(get, "rev")},
        "ffn": {"up": linear("conv1"), "down": linear("conv2")},
        "mixer_placement": norm("norm1"),
        "ffn_placement": norm("norm2"),
    }


def test_golden(x64):
    with np.load(GOLDEN) as file:
        arrays = {k.removeprefix("dev_"): file[k] for k in file if k.startswith("dev_")}
    block = registry.make(
        "blocks",
        "standard",
        mixer="mamba(is_bidirectional=True, state_size=4, expansion=1.0, taps=2)",
        ffn="relu(hidden=16, use_bias=True)",
        norm="layer(epsilon=1e-05)",
        placement="post",
        context=Context(depth=1, is_causal=False, **WIDE),
    )
    x = jnp.asarray(arrays["in_x"])
    places = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
    params = converted(lambda name: arrays[f"in_{name}"], 1)
    made = jax.eval_shape(
        lambda key: block.init(key, x, {}, layer=0, positions=places), jax.random.key(0)
    )
    wanted = jax.tree.map(jnp.shape, unbox(made)["params"])
    assert jax.tree.map(jnp.shape, params) == wanted

    def run(params, x):
        return block.apply({"params": params}, x, {}, layer=0, positions=places)[0]

    y, pull = jax.vjp(jax.jit(run), params, x)
    np.testing.assert_allclose(y, arrays["out_o"], atol=1e-7)
    by_params, by_x = pull(jnp.asarray(arrays["cot_o"]))
    np.testing.assert_allclose(by_x, arrays["grad_x"], atol=1e-7)
    slopes = named_leaves(converted(lambda name: arrays[f"grad_{name}"], 0))
    for name, slope in named_leaves(by_params).items():
        np.testing.assert_allclose(slope, slopes[name], atol=1e-6, err_msg=name)
