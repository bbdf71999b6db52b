import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.core.trees import unbox
from reslab.nn.residuals.elc_bert import EveryLayerCounts

LAYERS = 4


def network(form, x, params):
    """Attention tanh(x W) and feed-forward layers sin(x W), as in the golden file."""

    def residual(index):
        return EveryLayerCounts(
            form=form,
            depth=LAYERS,
            sublayers=2,
            sublayer_index=index,
            param_dtype=jnp.float64,
        )

    def variables(logits):
        logits = jnp.pad(logits, (0, LAYERS + 1 - logits.shape[0]))
        return {"params": {"read": {"logits": logits}}}

    stream = residual(0).widen(x).listed()
    for layer in range(LAYERS):
        logits = variables(params[f"{layer}_prev_layer_weights"])
        for index, (name, function) in enumerate(
            (("attention", jnp.tanh), ("mlp", jnp.sin))
        ):
            kernel = params[f"{layer}_{name}_W"]
            stream = residual(index).apply(
                logits,
                stream,
                lambda h, f=function, k=kernel: f(h @ k),
                site=2 * layer + index,
            )
    last = {}
    if form == "weighted_output":
        last = variables(params["out_weights"])
    return residual(0).apply(last, stream, method="narrow")


@pytest.mark.parametrize("form", ["base", "zero", "normalized", "weighted_output"])
def test_golden(golden, x64, form):
    data = golden("elc_bert")
    head = f"dev_{form}_"
    prefix = f"{head}p_"
    params = {k.removeprefix(prefix): v for k, v in data.items() if prefix in k}

    @jax.jit
    def run(x, params, cotangent):
        y, pull = jax.vjp(lambda x, p: network(form, x, p), x, params)
        return y, *pull(cotangent)

    y, by_x, gradient = run(data[f"{head}x"], params, data[f"{head}cot"])
    np.testing.assert_allclose(y, data[f"{head}out"], rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(by_x, data[f"{head}grad_x"], rtol=1e-7, atol=1e-9)
    for key, value in gradient.items():
        wanted = data[f"{head}grad_p_{key}"]
        np.testing.assert_allclose(value, wanted, rtol=1e-7, atol=1e-9, err_msg=key)


@pytest.mark.parametrize("form", ["base", "zero"])
def test_starts_as_the_authors_do(golden, form):
    data = golden("elc_bert")
    residual = EveryLayerCounts(form=form, depth=LAYERS)
    stream = residual.widen(jnp.ones((1, 2, 4)))
    for layer in range(LAYERS):
        variables = residual.init(jax.random.key(0), stream, jnp.tanh, site=layer)
        logits = unbox(variables)["params"]["read"]["logits"]
        wanted = data[f"dev_{form}_init_a{layer}"]
        np.testing.assert_array_equal(logits[: layer + 1], wanted)


def test_refuses_an_unknown_form():
    with pytest.raises(ReslabError, match=r"form: expected 'base', 'zero'.*got 'one'"):
        EveryLayerCounts(form="one")
