import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.core.trees import unbox
from reslab.nn.residuals.hyper import HyperConnections


def test_golden(golden, x64):
    data = golden("hyper_connections")

    def network(x, kernels, params):
        hyper = HyperConnections(streams=4, param_dtype=jnp.float64)
        stream = hyper.widen(x)
        for site in (0, 1):
            stream = hyper.apply(
                {"params": params[site]},
                stream,
                lambda h, site=site: jnp.tanh(h @ kernels[site]),
                site=site,
            )
        return hyper.narrow(stream), stream

    kernels = [data[f"shc_p_W{site}"] for site in (0, 1)]
    params = [
        {
            "mix": data[f"shc_p_m{site}_static_alpha"],
            "write": data[f"shc_p_m{site}_static_beta"],
        }
        for site in (0, 1)
    ]
    y, pull, stream = jax.vjp(network, data["shc_x"], kernels, params, has_aux=True)
    x_gradient, kernel_gradients, gradients = pull(jnp.asarray(data["shc_cot"]))
    pairs = [
        (y, "out"),
        (jnp.stack(stream, axis=2), "H"),
        (x_gradient, "grad_x"),
    ]
    for site in (0, 1):
        pairs += [
            (kernel_gradients[site], f"grad_p_W{site}"),
            (gradients[site]["mix"], f"grad_p_m{site}_static_alpha"),
            (gradients[site]["write"], f"grad_p_m{site}_static_beta"),
        ]
    for actual, key in pairs:
        np.testing.assert_allclose(
            actual, data[f"shc_{key}"], rtol=1e-7, atol=1e-7, err_msg=key
        )


def test_equation(x64):
    rng = np.random.default_rng(0)
    n = 3
    streams, mix = rng.normal(size=(n, 2, 4, 8)), rng.normal(size=(n, n + 1))
    write = rng.normal(size=n)
    reading = np.einsum("s,sbld->bld", mix[:, 0], streams)
    wanted = np.einsum("st,sbld->tbld", mix[:, 1:], streams)
    wanted += write[:, None, None, None] * np.tanh(reading)[None]
    hyper = HyperConnections(streams=n, param_dtype=jnp.float64)
    y = hyper.apply(
        {"params": {"mix": mix, "write": write}}, tuple(streams), jnp.tanh, site=0
    )
    np.testing.assert_allclose(y, wanted, rtol=1e-12)


@pytest.mark.parametrize("streams", [1, 2, 4])
def test_starts_as_n_times_the_plain_stream(x64, streams):
    rng = np.random.default_rng(0)
    x, kernels = rng.normal(size=(2, 3, 8)), rng.normal(size=(5, 8, 8))

    def branch(site):
        return lambda h: jnp.tanh(h @ kernels[site])

    hyper = HyperConnections(streams=streams, param_dtype=jnp.float64)
    wide, plain = hyper.widen(x), x
    for site in range(5):
        wide, _ = hyper.init_with_output(
            jax.random.key(0), wide, branch(site), site=site
        )
        plain = plain + np.tanh(plain @ kernels[site])
    np.testing.assert_allclose(hyper.narrow(wide), streams * plain, rtol=1e-9)


def test_sites_start_reading_the_streams_in_turn():
    stream = (jnp.zeros((1, 1, 4)),) * 3
    hyper = HyperConnections(streams=3)
    for site in range(5):
        variables = unbox(hyper.init(jax.random.key(0), stream, jnp.tanh, site=site))
        mix = variables["params"]["mix"]
        np.testing.assert_array_equal(mix[:, 0], np.eye(3)[site % 3])
        np.testing.assert_array_equal(mix[:, 1:], np.eye(3))
        np.testing.assert_array_equal(variables["params"]["write"], np.ones(3))


def test_refuses_no_streams():
    with pytest.raises(ReslabError, match="streams: expected at least 1; got 0"):
        HyperConnections(streams=0)
