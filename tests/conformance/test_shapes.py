"""Blocks, feed-forward layers and projections in whole models, several at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.trees import unbox
from reslab.parallel.mesh import make_mesh
from reslab.train.generate import generate

DESIGNS = {
    "parallel, noble, polyrelu": {
        "block": "parallel",
        "linear": "noble(rank=4)",
        "ffn": "polyrelu(hidden=16)",
    },
    "macaron, memory, relu2": {
        "block": "macaron",
        "linear": "memory_lookup(bits=4)",
        "ffn": "relu2(hidden=16)",
    },
    "hourglasses, geglu": {
        "block": ("hourglass(bottlenecks=2, lift=32)", "hourglass(bottlenecks=2)"),
        "ffn": "geglu(hidden=8)",
    },
    "reversible, chains, polynorm": {
        "block": "reversible",
        "residual": "reversible",
        "mixer": "attention(heads=4, kv_heads=2, is_kv_cyclic=True)",
        "linear": "chain(chains=(1, 1), is_kv_shared=True)",
        "norm": "chain_rms(chains=(1, 1))",
        "ffn": "polynorm(hidden=16)",
    },
}


@pytest.fixture(scope="module", params=DESIGNS)
def fields(request):
    return {"depth": 2, **DESIGNS[request.param]}


@pytest.fixture(scope="module")
def model(fields, small_model):
    return small_model(**fields)


@pytest.fixture(scope="module")
def params(model, tokens):
    shapes = unbox(jax.eval_shape(model.init, jax.random.key(0), tokens))["params"]
    random = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: np.asarray(0.3 * random.normal(size=leaf.shape), leaf.dtype),
        shapes,
    )


@pytest.fixture(scope="module")
def scanned(model, params, tokens, logits_and_gradient):
    return logits_and_gradient(model, params, tokens)


def test_scanned_is_unrolled(
    fields, small_model, params, tokens, scanned, logits_and_gradient, assert_close
):
    model = small_model(**fields, is_unrolled=True)
    assert_close(logits_and_gradient(model, params, tokens), scanned, 1e-10)


@pytest.mark.conformance
def test_every_parameter_has_a_gradient_in_every_layer(scanned):
    for path, leaf in jax.tree_util.tree_flatten_with_path(scanned[1])[0]:
        name = jax.tree_util.keystr(path)
        rows = np.asarray(leaf if "segment_" in name else leaf[None])
        assert all(np.any(row != 0) for row in rows), name


def test_on_eight_devices_is_on_one(
    model, params, tokens, scanned, logits_and_gradient, assert_close
):
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    together = logits_and_gradient(model, params, tokens, mesh=mesh)
    assert_close(together, scanned, 1e-10)


@pytest.mark.conformance  # Every mixer and stack has the same test alone.
def test_generates_what_the_forward_pass_says(model, params, tokens):
    prompt, steps = tokens[:2, :4], 4
    found = generate(model, {"params": params}, prompt, steps, temperature=0)
    whole = np.concatenate([prompt, np.asarray(found)], axis=1)
    logits = jax.jit(model.apply)({"params": params}, whole[:, :-1])
    wanted = jnp.argmax(logits, axis=-1)[:, prompt.shape[1] - 1 :]
    np.testing.assert_array_equal(found, wanted)
