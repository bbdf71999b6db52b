"""Dropout: off in evaluation, drawn by layer, the same in every form of the loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.core.randomness import training_keys
from reslab.core.trees import named_leaves, unbox
from reslab.models.lm import LanguageModel
from reslab.ops.attention.api import attention

RATES = {"dropout": 0.2, "embedding_dropout": 0.1}
DROPPING = "attention(heads=2, attention_dropout=0.3)"


def make(mixer="attention(heads=2)", **fields):
    return LanguageModel(
        vocabulary_size=24, features=16, depth=3, mixer=mixer, max_length=16, **fields
    )


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(0).integers(0, 24, (4, 8), dtype=np.int32)


@pytest.fixture(scope="module")
def variables(tokens):
    return unbox(make().init(jax.random.key(0), tokens))


def apply(model, variables, tokens, key=None):
    keys = training_keys(None if key is None else jax.random.key(key))
    return model.apply(variables, tokens, rngs=keys)


@pytest.mark.conformance
@pytest.mark.parametrize(
    "fields",
    [{"dropout": 0.2}, {"embedding_dropout": 0.2}, {"mixer": DROPPING}],
    ids=["sublayers", "embedding", "attention"],
)
def test_it_is_off_in_evaluation_and_differs_by_key(fields, variables, tokens):
    model = make(**fields)
    without = apply(make(), variables, tokens)
    np.testing.assert_array_equal(apply(model, variables, tokens), without)
    one, again, other = (apply(model, variables, tokens, key) for key in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert np.any(one != without)
    assert np.any(one != other)


@pytest.mark.conformance
@pytest.mark.parametrize(
    "residual",
    [
        "plain",
        *(
            pytest.param(name, marks=pytest.mark.conformance)
            for name in ("hyper(streams=2)", "attnres")
        ),
    ],
)
def test_scanned_and_recomputed_draw_the_same(residual, tokens):
    fields = {"mixer": DROPPING, "residual": residual, **RATES}
    params = unbox(make(**fields).init(jax.random.key(0), tokens))["params"]
    results = []
    for form in ({}, {"is_unrolled": True}, {"remat": "full"}):
        model = make(**fields, **form)

        def loss(params, model=model):
            return jnp.mean(jnp.square(apply(model, {"params": params}, tokens, 3)))

        results.append(jax.jit(jax.value_and_grad(loss))(params))
    for value, gradient in results[1:]:
        np.testing.assert_allclose(value, results[0][0], rtol=1e-5)
        for name, leaf in named_leaves(gradient).items():
            wanted = named_leaves(results[0][1])[name]
            np.testing.assert_allclose(leaf, wanted, rtol=1e-3, atol=1e-6, err_msg=name)


def test_attention_keeps_its_mean():
    rng = np.random.default_rng(1)
    query, key, value = (
        jnp.asarray(rng.standard_normal((1, 6, 2, 4)), jnp.float32) for _ in range(3)
    )
    whole = attention(query, key, value)

    def drop(seed):
        return attention(
            query, key, value, dropout=0.5, dropout_key=jax.random.key(seed)
        )

    found = jax.jit(jax.vmap(drop))(jnp.arange(4000))
    spread = np.std(found, axis=0) / 4000**0.5
    assert np.all(np.abs(np.mean(found, axis=0) - whole) < 5 * spread + 1e-6)
    # The first token sees itself alone: all or nothing.
    first = np.asarray(found[:, 0, 0, 0, 0] / value[0, 0, 0, 0]).round(5)
    assert {*first.tolist()} == {0.0, 2.0}


@pytest.mark.parametrize("field", ["dropout", "embedding_dropout"])
@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_rates_out_of_range_are_refused(field, rate, tokens):
    with pytest.raises(ReslabError, match=f"{field}: expected at least 0 and below 1"):
        make(**{field: rate}).init(jax.random.key(0), tokens)


def test_what_cannot_drop_says_so(tokens):
    block = {"block": "reversible", "residual": "reversible"}
    params = unbox(make(**block).init(jax.random.key(0), tokens))
    with pytest.raises(ReslabError, match="draws random numbers"):
        apply(make(**block, dropout=0.1), params, tokens, key=1)
    x = jnp.ones((1, 4, 1, 2))
    drops = {"dropout": 0.1, "dropout_key": jax.random.key(0)}
    with pytest.raises(ReslabError, match="'xla' does not support dropout"):
        attention(x, x, x, implementation="xla", **drops)
