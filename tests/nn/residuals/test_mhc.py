import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.core.trees import unbox
from reslab.nn.residuals.mhc import ManifoldHyperConnections, sinkhorn


def part(data, prefix):
    return {
        key.removeprefix(prefix): value
        for key, value in data.items()
        if key.startswith(prefix)
    }


def split(x):
    """Streams of the golden files, stacked before the features."""
    return tuple(jnp.moveaxis(x, -2, 0))


def compare(network, data):
    """Output and gradients by all inputs and parameters."""
    given = {key: data[key] for key in data if key == "x" or key.startswith("p_")}

    @jax.jit
    def run(given, cotangent):
        y, pull = jax.vjp(network, given)
        return y, pull(cotangent)[0]

    y, gradient = run(given, data["cot"])
    pairs = [(y, "out")]
    pairs += [(value, f"grad_{key}") for key, value in gradient.items()]
    for actual, key in pairs:
        np.testing.assert_allclose(actual, data[key], rtol=1e-7, atol=1e-7, err_msg=key)


def test_golden_of_the_equations(golden, x64):
    data = part(golden("mhc"), "paper_")
    residual = ManifoldHyperConnections(param_dtype=jnp.float64)

    def network(given):
        names = {"read": "pre", "write": "post", "mix": "res"}
        params = {
            name: given[f"p_b_{name_}"].reshape(-1) for name, name_ in names.items()
        }
        for name, theirs in names.items():
            kernel = given[f"p_phi_{theirs}"]
            params[f"{name}_projection"] = kernel.reshape(4, -1, kernel.shape[-1])
            params[f"{name}_scale"] = given[f"p_a_{theirs}"][0]
        stream = residual.apply(
            {"params": params},
            split(given["x"]),
            lambda h: jnp.tanh(h @ given["p_W"]),
            site=0,
        )
        return jnp.stack(stream, axis=-2)

    compare(network, data)


def test_golden_of_other_code_by_its_functions(golden, x64):
    data = part(golden("mhc"), "mhc_")
    data = {key: value for key, value in data.items() if not key.startswith("init")}
    n = 4

    def network(given):
        x = given["x"]
        flat = x.reshape(*x.shape[:-2], -1)
        flat = flat / jnp.sqrt(jnp.mean(flat**2, -1, keepdims=True))
        flat = flat * (1 + given["p_norm_gamma"])
        said = (flat @ given["p_dynamic_alpha_fn"]).reshape(*x.shape[:-2], n, n + 1)
        scale = jnp.concatenate(
            [given["p_pre_branch_scale"], jnp.repeat(given["p_residual_scale"], n)]
        )
        alpha = said * scale + given["p_static_alpha"]
        read = jax.nn.sigmoid(alpha[..., 0])
        # Its matrices are ours transposed, made in the same order.
        mix = sinkhorn(jnp.moveaxis(alpha[..., 1:], (-2, -1), (0, 1)), 20)
        beta = flat @ given["p_dynamic_beta_fn"] * given["p_h_post_scale"]
        write = 2 * jax.nn.sigmoid(beta + given["p_static_beta"])
        output = jnp.tanh(jnp.einsum("bts,btsd->btd", read, x) @ given["p_W"])
        y = jnp.einsum("stbl,blsd->bltd", mix, x)
        return y + write[..., None] * output[..., None, :]

    with jax.numpy_rank_promotion("allow"):
        compare(network, data)


def test_starts_as_the_other_code_does(golden):
    data = part(golden("mhc"), "mhc_init_")
    stream = (jnp.zeros((1, 1, 8)),) * 4
    residual = ManifoldHyperConnections()
    params = unbox(
        jax.jit(lambda: residual.init(jax.random.key(0), stream, jnp.tanh, site=1))()
    )["params"]
    np.testing.assert_array_equal(params["read"], data["static_alpha"][:, 0])
    np.testing.assert_array_equal(params["write"], data["static_beta"])
    np.testing.assert_array_equal(
        params["mix"].reshape(4, 4), data["static_alpha"][:, 1:]
    )
    for name, scale in (
        ("read", "pre_branch_scale"),
        ("write", "h_post_scale"),
        ("mix", "residual_scale"),
    ):
        assert not np.any(params[f"{name}_projection"])
        np.testing.assert_allclose(params[f"{name}_scale"], data[scale].squeeze())


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_rows_and_columns_sum_to_one_and_no_stream_grows(scale):
    logits = scale * jax.random.normal(jax.random.key(0), (4, 4, 50))
    m = np.asarray(sinkhorn(logits, 20))
    assert np.all(m >= 0)
    np.testing.assert_allclose(m.sum(axis=1), 1, atol=1e-6)
    columns = np.abs(m.sum(axis=0) - 1)
    assert np.max(columns) < (1e-4 if scale == 1 else 0.5)
    assert np.quantile(columns, 0.5) < 1e-2
    longer = np.asarray(sinkhorn(logits, 2000))
    np.testing.assert_allclose(longer.sum(axis=0), 1, atol=1e-2)
    assert np.max(np.linalg.norm(m.transpose(2, 0, 1), 2, axis=(1, 2))) < 1.5


def test_one_stream_is_kept():
    x = jax.random.normal(jax.random.key(0), (2, 3, 8))
    residual = ManifoldHyperConnections(streams=1)
    (y,), _ = jax.jit(
        lambda x: residual.init_with_output(
            jax.random.key(1), (x,), jnp.zeros_like, site=0
        )
    )(x)
    np.testing.assert_allclose(y, x, atol=1e-6)


@pytest.mark.parametrize("field", ["streams", "iterations"])
def test_refuses_less_than_one(field):
    with pytest.raises(ReslabError, match=rf"{field}: expected at least 1\b.*; got 0"):
        ManifoldHyperConnections(**{field: 0})


def published(given, names=("read", "write", "mix"), prefix="p_"):
    """Our parameters from those of a published layer, whose `mix` is transposed."""
    cuts = 4 * np.arange(1, len(names))
    kernels = jnp.split(given[f"{prefix}fn"], cuts)
    statics = jnp.split(given[f"{prefix}base"], cuts)
    params = {}
    for index, (name, kernel, static) in enumerate(
        zip(names, kernels, statics, strict=True)
    ):
        if name == "mix":
            kernel = kernel.reshape(4, 4, -1).swapaxes(0, 1).reshape(16, -1)
            static = static.reshape(4, 4).T.reshape(16)
        params[name] = static
        params[f"{name}_projection"] = kernel.T.reshape(4, -1, len(kernel))
        params[f"{name}_scale"] = given[f"{prefix}scale"][index]
    return params


def single(data):
    """Published layers compute in float32."""
    return {k: v.astype(np.float32) for k, v in data.items() if np.ndim(v)}


def close(actual, wanted, name):
    size = max(np.max(np.abs(wanted)), 1.0)
    np.testing.assert_allclose(actual, wanted, atol=1e-5 * size, err_msg=name)


def layer_with_gradients(residual, data):
    """Reading, weights and new streams of a published layer, and all gradients."""

    def network(given):
        seen = {}

        def keep(call, arguments, keywords, context):
            seen[context.method_name] = result = call(*arguments, **keywords)
            return result

        def branch(h):
            seen["branch"] = h
            return given["x1"]

        with nn.intercept_methods(keep):
            stream = residual.apply(
                {"params": published(given)}, split(given["x0"]), branch, site=0
            )
        write = jnp.moveaxis(seen["writing"], 0, -1)
        comb = jnp.moveaxis(seen["mixture"], (0, 1), (-1, -2))
        return seen["branch"], write, comb, jnp.stack(stream, axis=-2)

    given = {k: v for k, v in data.items() if k.startswith(("p_", "x"))}
    outputs, pull = jax.vjp(network, given)
    return outputs, pull(tuple(data[f"cot{index}"] for index in range(4)))[0]


def test_golden_of_a_published_layer(golden):
    data = single(golden("mhc_deepseek_v4"))
    layer = jax.jit(layer_with_gradients, static_argnums=0)
    residual = ManifoldHyperConnections(weight_epsilon=1e-6)
    outputs, gradients = layer(residual, data)
    for index, output in enumerate(outputs):
        close(output, data[f"out{index}"], f"out{index}")
    for name, gradient in gradients.items():
        close(gradient, data[f"grad_{name.removeprefix('p_')}"], name)
    for changed in ({"epsilon": 1e-2}, {"weight_epsilon": 1e-3}, {"iterations": 1}):
        residual = ManifoldHyperConnections(**{"weight_epsilon": 1e-6} | changed)
        other, _ = layer(residual, data)
        assert any(
            np.max(np.abs(one - wanted)) > 1e-4
            for one, wanted in zip(other, outputs, strict=True)
        ), changed


def test_golden_of_published_last_reading(golden):
    data = single(golden("mhc_head_deepseek_v4"))
    data = {k.replace("hc_", ""): v for k, v in data.items()}
    residual = ManifoldHyperConnections(weight_epsilon=1e-6, collapse="weighted")

    @jax.jit
    def run(given):
        def network(given):
            params = {"last": published(given, ("end",))}
            return residual.apply(
                {"params": params}, split(given["x0"]), method="narrow"
            )

        y, pull = jax.vjp(network, given)
        return y, pull(data["cot0"])[0]

    y, gradients = run({k: v for k, v in data.items() if k.startswith(("p_", "x"))})
    close(y, data["out0"], "out0")
    for name, gradient in gradients.items():
        close(gradient, data[f"grad_{name.removeprefix('p_')}"], name)


def test_collapses_to_the_mean():
    stream = tuple(jax.random.normal(jax.random.key(0), (4, 2, 3, 8)))
    residual = ManifoldHyperConnections(collapse="mean")
    mean = residual.apply({}, stream, method="narrow")
    np.testing.assert_allclose(mean, sum(stream) / 4, rtol=1e-6, atol=1e-6)
    residual = ManifoldHyperConnections(collapse="weighted")
    half, _ = residual.init_with_output(jax.random.key(0), stream, method="narrow")
    np.testing.assert_allclose(half, sum(stream) / 2, rtol=1e-6, atol=1e-6)


def test_an_epsilon_of_nothing_is_none():
    logits = 3 * jax.random.normal(jax.random.key(0), (4, 4, 5))
    np.testing.assert_allclose(
        sinkhorn(logits, 20, 1e-12), sinkhorn(logits, 20), rtol=1e-4, atol=1e-6
    )
