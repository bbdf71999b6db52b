"""A stronger stream, weaker branches; whole stacks are in test_goldens.py."""

import jax.numpy as jnp
import numpy as np

from reslab.nn.placements.deepnorm import DeepNorm
from reslab.nn.placements.post import PostNorm
from reslab.nn.residuals.hyper import HyperConnections
from reslab.nn.residuals.plain import Plain


def rms(x):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6)


def apply(placement, x, residual=None):
    params = {"params": {"stream_norm": {"gain": np.zeros(8)}}}
    return placement.apply(params, x, residual or Plain(), jnp.tanh, site=0)


def test_equation(x64):
    x = np.random.default_rng(0).normal(size=(2, 3, 8))
    y = apply(DeepNorm(depth=8, param_dtype=jnp.float64), x)
    np.testing.assert_allclose(y, rms(2.0 * x + np.tanh(x)), rtol=1e-9)


def test_alpha_one_is_post_norm(x64):
    x = np.random.default_rng(0).normal(size=(2, 3, 8))
    y = apply(DeepNorm(alpha=1.0, param_dtype=jnp.float64), x)
    np.testing.assert_array_equal(y, apply(PostNorm(param_dtype=jnp.float64), x))


def test_the_sublayer_reads_what_it_would_have_read(x64):
    """Through a mixture of streams as well."""
    rng = np.random.default_rng(0)
    streams = tuple(rng.normal(size=(2, 2, 3, 8)))
    params = {"mix": rng.normal(size=(2, 3)), "write": rng.normal(size=2)}
    hyper = HyperConnections(streams=2).bind({"params": params})
    y = apply(DeepNorm(alpha=3.0, param_dtype=jnp.float64), streams, hyper)
    mix, write = params["mix"], params["write"]
    output = np.tanh(np.einsum("s,sbtd->btd", mix[:, 0], streams))
    mixed = 3.0 * np.einsum("st,sbld->tbld", mix[:, 1:], streams)
    wanted = rms(mixed + write[:, None, None, None] * output)
    np.testing.assert_allclose(np.stack(y), wanted, rtol=1e-9)


def test_values_and_outputs_start_smaller_queries_and_keys_do_not(small_variables):
    body = "params/layers/body/segment_0/block_0"
    deep = small_variables(placement="deepnorm", scales_output_by_depth=False)
    usual = small_variables(placement="post", scales_output_by_depth=False)
    beta = (8 * 4) ** -0.25
    for part, factor in {
        "mixer/query": 1.0,
        "mixer/key": 1.0,
        "mixer/value": beta,
        "mixer/output": beta,
        "ffn/gate": beta,
        "ffn/up": beta,
        "ffn/down": beta,
    }.items():
        name = f"{body}/{part}/kernel"
        ratio = np.std(deep[name]) / np.std(usual[name])
        np.testing.assert_allclose(ratio, factor, rtol=1e-4, err_msg=part)
