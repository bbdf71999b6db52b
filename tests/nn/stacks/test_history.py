"""Histories under every loop: the same numbers, and memory in line with depth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.core.losses import LOSSES, total_loss
from reslab.core.taps import TAPS
from reslab.core.trees import named_leaves, unbox
from reslab.models.lm import LanguageModel
from reslab.observe.watch import watching_stream_gradient

TOKENS = np.random.default_rng(3).integers(0, 24, (2, 6), dtype=np.int32)
# Two kinds of layers that do not fit the depth, and values of the first one.
MIXED = {
    "mixer": ("attention(heads=2, value_path='value_residual')", "attention(heads=1)"),
    "residual": "attnres(block=3)",
    "depth": 5,
}


def make(**fields):
    defaults = {"features": 8, "depth": 3, "ffn": "swiglu(hidden=16)"}
    defaults |= {"mixer": "attention(heads=2)", "residual": "attnres"}
    return LanguageModel(vocabulary_size=24, **defaults | fields)


def drawn(model):
    shapes = unbox(jax.eval_shape(model.init, jax.random.key(0), TOKENS))["params"]
    rng = np.random.default_rng(7)
    return jax.tree.map(lambda s: 0.3 * rng.standard_normal(s.shape), shapes)


def gradient(model, params, dtype, **keywords):
    """Logits and the gradient of a function of them, at a dtype."""
    model = model.clone(dtype=dtype, param_dtype=dtype)
    params = jax.tree.map(lambda a: np.asarray(a, dtype), params)

    def loss(params):
        logits = model.apply({"params": params}, TOKENS, **keywords)
        logits = logits[0] if keywords else logits
        return jnp.sum(jnp.sin(logits)), logits

    return jax.jit(jax.grad(loss, has_aux=True))(params)


def assert_close(actual, wanted, tolerance):
    for (name, a), b in zip(
        named_leaves(actual).items(), jax.tree.leaves(wanted), strict=True
    ):
        size = np.max(np.abs(b), initial=1e-9)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * size, err_msg=name)


@pytest.mark.conformance
def test_float32_gradients_are_those_of_the_list():
    model = make()
    params = drawn(model)
    rolled = gradient(model, params, jnp.float32)
    listed = gradient(make(is_unrolled=True), params, jnp.float32)
    assert_close(rolled, listed, 2e-6)


@pytest.mark.conformance  # Three forms; float32 in every run.
def test_mixed_layers_are_those_of_a_carried_history(x64):
    model = make(**MIXED)
    params = drawn(model)
    # Where someone looks inside, the sources ride in the carry of an ordinary scan.
    wanted = gradient(model, params, jnp.float64, mutable=[TAPS])
    for other in (model, make(**MIXED, is_unrolled=True)):
        assert_close(gradient(other, params, jnp.float64), wanted, 1e-10)


@pytest.mark.conformance
@pytest.mark.parametrize(
    "stack",
    ["uniform", pytest.param("looped(loops=2)", marks=pytest.mark.conformance)],
)
def test_what_layers_add_to_the_loss_has_a_gradient(x64, stack):
    fields = {"residual": "attnres(block=3, entropy_bonus=0.7)", "stack": stack}
    params = jax.tree.map(np.asarray, drawn(make(**fields)))

    def gradient(*watched, **more):
        model = make(**fields, **more, dtype=jnp.float64, param_dtype=jnp.float64)

        def loss(params):
            _, written = model.apply(
                {"params": params}, TOKENS, mutable=[LOSSES, *watched]
            )
            return total_loss(written)

        return jax.jit(jax.value_and_grad(loss))(params)

    wanted, by_params = gradient(TAPS)
    assert wanted < -0.1
    queries = [g for n, g in named_leaves(by_params).items() if n.endswith("query")]
    assert all(np.any(query) for query in queries)
    for found, by_found in (gradient(), gradient(is_unrolled=True)):
        np.testing.assert_allclose(found, wanted, rtol=1e-10)
        assert_close(by_found, by_params, 1e-9)


@pytest.mark.conformance
@pytest.mark.parametrize("is_unrolled", [False, True])
def test_passes_of_a_loop_go_on_with_the_history(x64, is_unrolled):
    looped = make(depth=2, stack="looped(loops=2)", is_unrolled=is_unrolled)
    params = drawn(looped)
    repeated = params | {
        "layers": params["layers"]
        | {
            "body": jax.tree.map(
                lambda a: np.concatenate([a, a]), params["layers"]["body"]
            )
        }
    }
    found, logits = gradient(looped, params, jnp.float64)
    wide, wanted = gradient(make(depth=4), repeated, jnp.float64)
    np.testing.assert_allclose(logits, wanted, rtol=1e-9)
    body = jax.tree.map(lambda a: a[:2] + a[2:], wide["layers"]["body"])
    assert_close(found["layers"]["body"], body, 1e-9)


def temporaries(depth, **keywords):
    model = make(depth=depth)
    shapes = unbox(jax.eval_shape(model.init, jax.random.key(0), TOKENS))["params"]
    tokens = jax.ShapeDtypeStruct((8, 64), jnp.int32)

    def loss(params, tokens):
        y = model.apply({"params": params}, tokens, **keywords)
        return jnp.sum(jnp.sin(y[0] if keywords else y))

    compiled = jax.jit(jax.grad(loss)).lower(shapes, tokens).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.conformance
@pytest.mark.optimized
def test_memory_grows_with_depth_and_not_its_square():
    assert temporaries(24) < 2.1 * temporaries(12)


@pytest.mark.conformance
@pytest.mark.optimized
def test_an_ordinary_scan_keeps_all_sources_for_every_layer():
    assert temporaries(24, mutable=[TAPS]) > 4 * temporaries(24)


@pytest.mark.conformance
def test_a_watcher_sees_the_gradient_of_the_stream(x64):
    model = make(dtype=jnp.float64, param_dtype=jnp.float64)
    params = drawn(model)
    sites = jnp.arange(6, dtype=jnp.int32)

    def by_slots(**keywords):
        def loss(slots):
            with watching_stream_gradient(slots, sites):
                y = model.apply({"params": params}, TOKENS, **keywords)
            return jnp.sum(jnp.sin(y[0] if keywords else y))

        return jax.jit(jax.grad(loss))(jnp.zeros(6, jnp.float32))

    wanted = by_slots(mutable=[TAPS])
    assert np.all(wanted > 0)
    np.testing.assert_allclose(by_slots(), wanted, rtol=1e-6)


@pytest.mark.parametrize(
    "placement", ["post", "deepnorm", "hybrid", "mix_ln(alpha=0.5)"]
)
def test_refuses_a_placement_that_rewrites_the_stream(placement):
    with pytest.raises(ReslabError, match="'attnres': its sources are written once"):
        jax.eval_shape(make(placement=placement).init, jax.random.key(0), TOKENS)


@pytest.mark.parametrize(
    "fields, message",
    [
        (
            {"mixer": "gated_delta(heads=2)"},
            "expected a layer that begins with a mixer",
        ),
        ({"block": "parallel"}, "in ParallelBlock"),
    ],
)
def test_refuses_a_mixer_without_queries_and_keys(fields, message):
    model = make(residual="mudd", **fields)
    with pytest.raises(ReslabError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), TOKENS)
