"""Chain of experts: the authors' numbers, and what one round is."""

import jax
import jax.numpy as jnp
import numpy as np

from reslab.core.losses import LOSSES, total_loss
from reslab.core.trees import unbox
from reslab.nn.ffns.chain_of_experts import ChainOfExperts
from reslab.nn.ffns.experts import Experts

WIDE = {"dtype": jnp.float64, "param_dtype": jnp.float64}


def _as_ours(data, kind):
    """Parameters, or their gradients, of the authors' layer under our names."""

    def kernel(name):
        return {"kernel": data[f"{kind}_{name}.weight"].T}

    kernels = {
        ours: {
            "kernels": np.stack(
                [data[f"{kind}_experts.{e}.{ours}_proj.weight"].T for e in range(6)]
            )
        }
        for ours in ("gate", "up", "down")
    }
    shared = {
        name: kernel(f"shared_experts.{name}_proj") for name in ("gate", "up", "down")
    }
    return {
        "experts": {**kernels, "shared": shared},
        "router_0": kernel("gate.0"),
        "router_1": kernel("gate.1"),
    }


def test_the_layer_is_the_authors(golden, x64):
    data = golden("coe")
    layer = ChainOfExperts(
        experts=6, chosen=2, hidden=8, shared_hidden=8, iterations=2, **WIDE
    )
    gain = data["in_norm.weight"]

    def run(params, x):
        h = (
            x
            * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)
            * gain[None, None]
        )
        y, written = layer.apply({"params": params}, h, mutable=[LOSSES])
        # Their balance is added to the gradient as it is.
        return jnp.sum(y * data["cot_h"]) + total_loss(written), (y, written)

    params = _as_ours(data, "in")
    slopes, (y, written) = jax.grad(run, (0, 1), has_aux=True)(params, data["in_x"])
    close = {"rtol": 1e-5, "atol": 1e-5}  # Theirs is float32.
    np.testing.assert_allclose(y, data["out_h"], **close)
    losses = written[LOSSES]["experts"]["balance"]
    np.testing.assert_allclose(losses, data["aux_losses"], rtol=1e-5)
    np.testing.assert_allclose(slopes[1], data["grad_x"], **close)
    wanted = _as_ours(data, "grad")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **close), slopes[0], wanted
    )


def test_one_round_is_experts_and_their_input():
    x = jax.random.normal(jax.random.key(0), (2, 5, 8))
    chain = ChainOfExperts(iterations=1, hidden=8)
    params = unbox(chain.init(jax.random.key(1), x))["params"]
    plain = {**params["experts"], "router": params["router_0"]}
    once = Experts(hidden=8, is_renormalized=False).apply({"params": plain}, x)
    np.testing.assert_allclose(chain.apply({"params": params}, x), once + x, rtol=1e-6)
    bare = ChainOfExperts(iterations=1, hidden=8, has_residual=False)
    np.testing.assert_allclose(bare.apply({"params": params}, x), once, rtol=1e-6)
