import jax
import jax.numpy as jnp
import numpy as np

from reslab.nn.residuals.mudd import MultiwayDense

LAYERS = 3


def variables(params, layer, ways):
    """The authors' network after `layer` layers, padded to that of the end."""
    rows, hidden, count = LAYERS + 1, 4 * (LAYERS + 1), layer + 1
    if layer == 0:  # There is none: every stream is the embedding.
        inner, outer = jnp.zeros((4, 8)), jnp.zeros((4, 4))
        static = jnp.zeros((4, 1))
    else:
        inner, outer, static = (params[f"{k}_{layer - 1}"] for k in ("w1", "w2", "sb"))
    units = inner.shape[0]
    outer = outer.T.reshape(units, ways, count)
    missing = ((0, hidden - units), (0, 0), (0, rows - count))
    outer = jnp.pad(outer, missing).reshape(hidden, ways * rows)
    return {
        "params": {
            "mix": {
                "inner": {"kernel": jnp.pad(inner.T, ((0, 0), (0, hidden - units)))},
                "outer": {"kernel": outer},
                "static": jnp.pad(static, ((0, 0), (0, rows - count))),
            }
        }
    }


def network(x, params):
    """The toy network of the golden file: a mixer of three inputs, then a layer."""

    def residual(index):
        return MultiwayDense(
            depth=LAYERS,
            sublayers=2,
            sublayer_index=index,
            sublayer=("mixer", "ffn")[index],
            param_dtype=jnp.float64,
        )

    stream = residual(0).widen(x).listed()
    for layer in range(LAYERS):
        kernels = {kind: params[f"W{kind}_{layer}"] for kind in "qkvf"}

        def mixer(h, w=kernels):
            gate = jax.nn.sigmoid(h.key @ w["k"])
            return jnp.tanh(h.query @ w["q"]) * gate + h.value @ w["v"]

        stream = residual(0).apply(
            variables(params, layer, 4), stream, mixer, site=2 * layer
        )
        stream = residual(1).apply(
            {}, stream, lambda h, w=kernels: jnp.tanh(h @ w["f"]), site=2 * layer + 1
        )
    last = variables(params, LAYERS, 1)
    return MultiwayDense(depth=LAYERS, param_dtype=jnp.float64).apply(
        last, stream, method="narrow"
    )


def test_golden(golden, x64):
    data = golden("muddformer")
    params = {k[6:]: v for k, v in data.items() if k.startswith("dev_p_")}

    @jax.jit
    def run(x, params, cotangent):
        y, pull = jax.vjp(network, x, params)
        return y, *pull(cotangent)

    y, by_x, gradient = run(data["dev_x"], params, data["dev_cot"])
    np.testing.assert_allclose(y, data["dev_out"], rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(by_x, data["dev_grad_x"], rtol=1e-7, atol=1e-9)
    for key, value in gradient.items():
        wanted = data[f"dev_grad_p_{key}"]
        np.testing.assert_allclose(value, wanted, rtol=1e-7, atol=1e-9, err_msg=key)
