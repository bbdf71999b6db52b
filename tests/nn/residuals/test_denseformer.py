import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.core.trees import unbox
from reslab.nn.residuals.denseformer import DenseFormer

LAYERS = 5


def network(residual, x, kernels, alphas, dilation):
    """Blocks h + tanh(h W), as one sublayer each."""

    def variables(layer):
        if layer not in alphas:
            return {"params": {"read": {"weights": np.zeros(LAYERS + 1)}}}
        rows = jnp.arange(layer % dilation, layer + 1, dilation)
        weights = jnp.zeros(LAYERS + 1).at[rows].set(alphas[layer][0])
        return {"params": {"read": {"weights": weights}}}

    stream = residual.widen(x).listed()
    for layer, kernel in enumerate(kernels):
        stream = residual.apply(
            variables(layer), stream, lambda h, k=kernel: jnp.tanh(h @ k), site=layer
        )
    return residual.apply(variables(LAYERS), stream, method="narrow")


@pytest.mark.parametrize("variant", ["d1p1", "d2p1", "d2p2", "d4p5"])
def test_golden(golden, x64, variant):
    data = golden("denseformer_dwa")
    dilation, period = map(int, re.findall(r"\d", variant))
    residual = DenseFormer(
        dilation=dilation, period=period, depth=LAYERS, param_dtype=jnp.float64
    )
    head = f"dev_{variant}_"
    kernels = [data[f"{head}p_W{i}"] for i in range(LAYERS)]
    # The authors count readings from 0: that after layer i + 1 has index i.
    alphas = {
        i + 1: data[f"{head}p_alphas_{i}_weight"]
        for i in range(LAYERS)
        if f"{head}p_alphas_{i}_weight" in data
    }
    assert len(alphas) == LAYERS // period

    @jax.jit
    def run(x, kernels, alphas, cotangent):
        y, pull = jax.vjp(
            lambda *args: network(residual, *args, dilation), x, kernels, alphas
        )
        return y, *pull(cotangent)

    y, by_x, by_kernels, by_alphas = run(
        data[f"{head}x"], kernels, alphas, data[f"{head}cot"]
    )
    pairs = [(y, "out"), (by_x, "grad_x")]
    pairs += [(g, f"grad_p_W{i}") for i, g in enumerate(by_kernels)]
    pairs += [(g, f"grad_p_alphas_{i - 1}_weight") for i, g in by_alphas.items()]
    for actual, key in pairs:
        np.testing.assert_allclose(
            actual, data[head + key], rtol=1e-7, atol=1e-9, err_msg=key
        )


def test_starts_with_the_latest_alone():
    residual = DenseFormer(depth=3)
    stream = residual.widen(jnp.ones((1, 2, 4)))
    for site in range(3):
        variables = unbox(residual.init(jax.random.key(0), stream, jnp.tanh, site=site))
        weights = variables["params"]["read"]["weights"]
        np.testing.assert_array_equal(weights, np.eye(4)[site])


@pytest.mark.parametrize("field", ["dilation", "period"])
def test_refuses(field):
    with pytest.raises(ReslabError, match=f"{field}: expected at least 1; got 0"):
        DenseFormer(**{field: 0})
