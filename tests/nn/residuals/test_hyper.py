import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.core.trees import unbox
from reslab.nn.residuals.hyper import HyperConnections

FORMS = {
    "shc": {},
    "dhc": {"is_dynamic": True},
    "dhc_notanh": {"is_dynamic": True, "use_tanh": False},
}


def params_of(data, site):
    """Parameters of a site, from those of the golden file."""
    part = {
        key.removeprefix(f"p_m{site}_"): value
        for key, value in data.items()
        if key.startswith(f"p_m{site}_")
    }
    params = {"mix": part["static_alpha"], "write": part["static_beta"]}
    if "norm_weight" in part:
        params |= {
            "mix_projection": part["dynamic_alpha_proj"],
            "write_projection": part["dynamic_beta_proj"][:, None],
            "mix_scale": part["dynamic_alpha_scale"][0],
            "write_scale": part["dynamic_beta_scale"][0],
            # Theirs is the gain itself, ours its offset from one.
            "norm": {"gain": part["norm_weight"] - 1, "bias": part["norm_bias"]},
        }
    return params


@pytest.mark.parametrize("form", FORMS)
def test_golden(golden, x64, form):
    arrays = golden("hyper_connections")
    data = {
        key.removeprefix(f"{form}_"): value
        for key, value in arrays.items()
        if key.startswith(f"{form}_") and not key.startswith(f"{form}_notanh")
    }
    given = {key: data[key] for key in data if key == "x" or key.startswith("p_")}
    hyper = HyperConnections(streams=4, param_dtype=jnp.float64, **FORMS[form])

    def network(given):
        stream = hyper.widen(given["x"])
        for site in (0, 1):
            stream = hyper.apply(
                {"params": params_of(given, site)},
                stream,
                lambda h, site=site: jnp.tanh(h @ given[f"p_W{site}"]),
                site=site,
            )
        return hyper.narrow(stream), stream

    @jax.jit
    def run(given, cotangent):
        y, pull, stream = jax.vjp(network, given, has_aux=True)
        return y, stream, pull(cotangent)[0]

    y, stream, gradient = run(given, data["cot"])
    pairs = [(y, "out"), (jnp.stack(stream, axis=2), "H")]
    pairs += [(value, f"grad_{key}") for key, value in gradient.items()]
    for actual, key in pairs:
        np.testing.assert_allclose(actual, data[key], rtol=1e-7, atol=1e-7, err_msg=key)


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


@pytest.mark.parametrize("is_dynamic", [False, True])
@pytest.mark.parametrize("streams", [1, 2, 4])
def test_starts_as_n_times_the_plain_stream(x64, streams, is_dynamic):
    rng = np.random.default_rng(0)
    x, kernels = rng.normal(size=(2, 3, 8)), rng.normal(size=(5, 8, 8))

    def branch(site):
        return lambda h: jnp.tanh(h @ kernels[site])

    hyper = HyperConnections(
        streams=streams, is_dynamic=is_dynamic, param_dtype=jnp.float64
    )
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
    with pytest.raises(
        ReslabError, match="streams: expected at least 1 and at most 256; got 0"
    ):
        HyperConnections(streams=0)
