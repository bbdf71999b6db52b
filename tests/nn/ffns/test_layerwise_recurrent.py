"""The router that steps from layer to layer: the authors' numbers, and its cell."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.core.trees import unbox
from reslab.nn.ffns.layerwise_recurrent import LayerwiseRecurrentExperts

WIDE = {"dtype": jnp.float64, "param_dtype": jnp.float64}
GATES = "rzn"


def _as_ours(data, kind):
    """Parameters, or their gradients, of the authors' layers under our names."""

    def gru(name, turn=False):
        each = [data[f"{kind}_gru.{name}{gate}"] for gate in GATES]
        return np.stack([one.T if turn else one for one in each])

    cell = {
        "cell_input": gru("weight_i", turn=True),
        "cell_state": gru("weight_h", turn=True),
        "cell_input_bias": gru("bias_i"),
        "cell_state_bias": gru("bias_h"),
    }
    layers = []
    for layer in range(3):
        at = f"{kind}_layer{layer}"
        kernels = {
            ours: {
                "kernels": np.stack(
                    [data[f"{at}.experts.{e}.{theirs}.weight"].T for e in range(4)]
                )
            }
            for ours, theirs in (("gate", "w1"), ("down", "w2"), ("up", "w3"))
        }
        kernels["router_in"] = {"kernel": data[f"{at}.weight1"].T}
        kernels["router_out"] = {"kernel": data[f"{at}.weight2"].T}
        layers.append(kernels | (cell if layer == 0 else {}))
    return layers


def _run(layer, params, x):
    shared, states = {}, []
    for own in params:
        y, left = layer.apply({"params": own}, x, shared=shared)
        shared, x = {**shared, **left}, x + y
        states.append(left["router_state"])
    return x, states


def test_the_layers_are_the_authors(golden, x64):
    data = golden("rmoe")
    layer = LayerwiseRecurrentExperts(
        experts=4, chosen=2, hidden=8, router_width=6, balance="none", **WIDE
    )
    # Their loss has a balance over all layers besides, whose slope is not asked here.
    params, x = _as_ours(data, "in"), data["in_x"]
    y, states = _run(layer, params, x)
    close = {"rtol": 1e-6, "atol": 1e-6}  # Their weights are float32.
    np.testing.assert_allclose(y, data["out_y"], **close)
    for number, state in enumerate(states):
        wanted = data[f"router_state{number}"].reshape(2, 4, 6)
        np.testing.assert_allclose(state, wanted, **close)

    def loss(params, x):
        y, states = _run(layer, params, x)
        scores, shares = [], []
        for own, state in zip(params, states, strict=True):
            p = jax.nn.softmax(state @ own["router_out"]["kernel"]).reshape(-1, 4)
            scores.append(p)
            shares.append(jax.nn.one_hot(jax.lax.top_k(p, 2)[1], 4))
        share = jnp.mean(jnp.concatenate(shares), 0)
        aux = 4 * jnp.sum(share * jnp.mean(jnp.concatenate(scores), 0)[None])
        return jnp.sum(y * data["cot_y"]) + jnp.sum(aux * data["cot_aux"])

    slopes = jax.grad(loss, (0, 1))(params, x)
    np.testing.assert_allclose(slopes[1], data["grad_x"], **close)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **close),
        slopes[0],
        _as_ours(data, "grad"),
    )


def test_a_gate_that_is_shut_forgets_the_layers_before():
    x = jax.random.normal(jax.random.key(0), (2, 5, 8))
    layer = LayerwiseRecurrentExperts(hidden=8, router_width=4)
    params = unbox(layer.init(jax.random.key(1), x))["params"]
    params["cell_state"] = jnp.zeros_like(params["cell_state"])
    bias = params["cell_input_bias"]
    params["cell_input_bias"] = bias.at[1].set(-jnp.inf)
    alone, left = layer.apply({"params": params}, x, shared={})
    later, _ = layer.apply({"params": params}, x, shared=left)
    np.testing.assert_array_equal(alone, later)


def test_a_path_without_the_layer_that_owns_the_cell():
    x = jnp.ones((1, 2, 8))
    layer = LayerwiseRecurrentExperts(hidden=8, router_width=4)
    variables = unbox(layer.init(jax.random.key(0), x))
    _, left = layer.apply(variables, x, shared={})
    later = unbox(layer.init(jax.random.key(0), x, shared=left))
    assert "cell_input" not in later["params"]
    with pytest.raises(ReslabError, match="begin with the one that owns it"):
        layer.apply(later, x)
