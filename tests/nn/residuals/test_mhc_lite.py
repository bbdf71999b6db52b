import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.core.trees import unbox
from reslab.nn.residuals.mhc_lite import ManifoldHyperConnectionsLite


def params_of(given):
    """Our parameters from theirs: the gain of the norm goes into the projections."""
    gain = 1 + given["norm_gamma"][:, None]
    alpha, beta = gain * given["dynamic_alpha_fn"], gain * given["dynamic_beta_fn"]
    static = given["static_alpha"]
    return {
        "read": static[:4],
        "mix": static[4:],
        "write": given["static_beta"],
        "read_projection": alpha[:, :4].reshape(4, -1, 4),
        "mix_projection": alpha[:, 4:].reshape(4, -1, 24),
        "write_projection": beta.reshape(4, -1, 4),
        "read_scale": given["pre_branch_scale"].squeeze(),
        "mix_scale": given["residual_scale"].squeeze(),
        "write_scale": given["h_post_scale"].squeeze(),
    }


def test_golden(golden, x64):
    data = {
        key.removeprefix("mhclite_"): value
        for key, value in golden("mhc").items()
        if key.startswith("mhclite_")
    }
    residual = ManifoldHyperConnectionsLite(epsilon=0.0, param_dtype=jnp.float64)

    def network(x, given):
        stream = residual.apply(
            {"params": params_of(given)},
            tuple(jnp.moveaxis(x, -2, 0)),
            lambda h: jnp.tanh(h @ given["W"]),
            site=0,
        )
        return jnp.stack(stream, axis=-2)

    names = [key.removeprefix("p_") for key in data if key.startswith("p_")]
    given = {name: data[f"p_{name}"] for name in names}

    @jax.jit
    def run(x, given, cotangent):
        y, pull = jax.vjp(network, x, given)
        return y, *pull(cotangent)

    y, x_gradient, gradient = run(data["x"], given, data["cot"])
    pairs = [(y, "out"), (x_gradient, "grad_x")]
    pairs += [(gradient[name], f"grad_p_{name}") for name in names]
    for actual, key in pairs:
        np.testing.assert_allclose(actual, data[key], rtol=1e-7, atol=1e-7, err_msg=key)

    start = {
        key.removeprefix("init_"): value
        for key, value in data.items()
        if key.startswith("init_")
    }
    stream = (jnp.zeros((1, 1, 8)),) * 4
    variables = jax.jit(
        lambda: residual.init(jax.random.key(0), stream, jnp.tanh, site=1)
    )()
    found = unbox(variables)["params"]
    for name, wanted in params_of(start).items():
        np.testing.assert_allclose(found[name], wanted, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("streams", [1, 2, 4])
def test_rows_and_columns_sum_to_one_and_no_stream_grows(streams):
    residual = ManifoldHyperConnectionsLite(streams=streams)
    count = len(residual.permutations())
    logits = 4 * jax.random.normal(jax.random.key(0), (count, 50))
    m = np.asarray(residual.mixture(logits)).transpose(2, 0, 1)
    np.testing.assert_allclose(m.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(m.sum(axis=2), 1, atol=1e-6)
    assert np.max(np.linalg.norm(m, 2, axis=(1, 2))) < 1 + 1e-6


def test_an_even_average_is_the_mean_of_the_streams():
    residual = ManifoldHyperConnectionsLite(streams=3)
    m = residual.mixture(jnp.zeros((6, 1)))
    np.testing.assert_allclose(m, np.full((3, 3, 1), 1 / 3), atol=1e-6)


@pytest.mark.parametrize(("streams", "message"), [(0, "at least 1"), (8, "at most 7")])
def test_refuses_streams_out_of_range(streams, message):
    with pytest.raises(ReslabError, match=message):
        ManifoldHyperConnectionsLite(streams=streams)
