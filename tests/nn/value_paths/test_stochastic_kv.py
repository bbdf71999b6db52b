import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.depth import layer_numbers
from reslab.core.errors import ReslabError
from reslab.core.randomness import DROPOUT
from reslab.core.taps import TAPS
from reslab.core.trees import named_leaves
from reslab.models.lm import LanguageModel
from reslab.nn.mixers.attention import Attention
from reslab.nn.value_paths.stochastic_kv import StochasticKeysValues

DEPTH = 5


class Watched(StochasticKeysValues):
    """Shows its own keys, and those that its queries meet."""

    def __call__(self, x, *, key, **keywords):
        own = key()
        result = super().__call__(x, key=lambda: own, **keywords)
        self.sow(TAPS, "own", own)
        self.sow(TAPS, "read", result[0])
        return result


def model(cross, **form):
    path = functools.partial(Watched, cross=cross)
    mixer = functools.partial(Attention, heads=2, value_path=path)
    return LanguageModel(
        vocabulary_size=13,
        features=8,
        depth=DEPTH,
        mixer=mixer,
        ffn="gelu(hidden=8)",
        **form,
    )


@pytest.fixture(scope="module")
def params(drawn):
    return drawn(model(0.5))


def applied(params, tokens, cross, key, **form):
    """Logits, and which layer's keys each layer has read."""
    rngs = {} if key is None else {DROPOUT: key}
    run = model(cross, **form).apply
    logits, seen = jax.jit(
        lambda p, rngs: run({"params": p}, tokens, rngs=rngs, mutable=[TAPS])
    )(params, rngs)
    numbers, rows = layer_numbers(seen[TAPS]), {"own": {}, "read": {}}
    for name, leaf in named_leaves(seen[TAPS]).items():
        for layer, row in zip(numbers[name], np.asarray(leaf), strict=True):
            rows[name.split("/")[-2]][int(layer)] = row
    sources = [
        [i for i in range(DEPTH) if np.array_equal(rows["own"][i], rows["read"][layer])]
        for layer in range(DEPTH)
    ]
    return logits, sources


def test_reads_its_own_without_a_key_or_a_probability(params, tokens):
    wanted, sources = applied(params, tokens, 1.0, None)
    assert sources == [[layer] for layer in range(DEPTH)]
    logits, sources = applied(params, tokens, 0.0, jax.random.key(0))
    assert sources == [[layer] for layer in range(DEPTH)]
    np.testing.assert_allclose(logits, wanted, atol=1e-5)


@pytest.mark.parametrize("form", [{"is_unrolled": True}, {"remat": "full"}], ids=str)
def test_draws_the_same_in_every_form_of_the_loop(params, tokens, form):
    key = jax.random.key(3)
    wanted, sources = applied(params, tokens, 1.0, key)
    logits, found = applied(params, tokens, 1.0, key, **form)
    assert found == sources
    np.testing.assert_allclose(logits, wanted, atol=1e-5)
    assert sources[0] == [0]
    assert all(len(s) == 1 and s[0] < layer for layer, s in enumerate(sources) if layer)


def test_every_earlier_layer_is_as_likely():
    """The path alone, many times: how often it reads which layer."""
    own = jnp.full((1, 1, 1, 1), 3.0)
    kept = jnp.arange(4.0).reshape(4, 1, 1, 1, 1)
    path = StochasticKeysValues(cross=0.6, depth=4)

    def read(key):
        shared = {"keys_values": (jnp.asarray(3, jnp.int32), (kept, kept))}
        found, value, shared = path.apply(
            {},
            own,
            key=lambda: own,
            value=lambda: own,
            keep=lambda name, new: new,
            shared=shared,
            rngs={DROPOUT: key},
        )
        return found[0, 0, 0, 0], value[0, 0, 0, 0], shared["keys_values"][0]

    keys, values, layers = jax.jit(jax.vmap(read))(
        jax.random.split(jax.random.key(0), 4000)
    )
    np.testing.assert_array_equal(keys, values)
    np.testing.assert_array_equal(layers, 4)
    found = np.bincount(np.asarray(keys, int), minlength=4) / 4000
    # Three standard deviations of 4,000 draws.
    np.testing.assert_allclose(found, [0.2, 0.2, 0.2, 0.4], atol=0.024)


@pytest.mark.conformance
def test_gradients_reach_the_layer_that_was_read(params, tokens):
    def loss(params, form):
        logits = model(1.0, **form).apply(
            {"params": params}, tokens, rngs={DROPOUT: jax.random.key(3)}
        )
        return jnp.sum(jnp.sin(logits))

    gradients = [
        jax.jit(jax.grad(functools.partial(loss, form=form)))(params)
        for form in ({}, {"remat": "full"})
    ]
    for name, slope in named_leaves(gradients[0]).items():
        again = named_leaves(gradients[1])[name]
        size = float(np.max(np.abs(slope)))
        np.testing.assert_allclose(again, slope, atol=1e-4 * size, err_msg=name)
    # With cross=1 the first layer alone reads itself, so only a read by another
    # layer gives the others' keys a gradient; the last one's are never read.
    _, sources = applied(params, tokens, 1.0, jax.random.key(3))
    is_read = {s[0] for s in sources}
    for name, slope in named_leaves(gradients[0]).items():
        if name.endswith("mixer/key/kernel"):
            layers = layer_numbers(gradients[0])[name]
            for layer, row in zip(layers, np.asarray(slope), strict=True):
                assert np.any(row != 0) == (int(layer) in is_read), layer


@pytest.mark.conformance
@pytest.mark.optimized
def test_memory_grows_with_depth_and_not_with_its_square(tokens):
    def temporary(depth):
        deep = model(0.5, remat="full").clone(depth=depth, features=32)
        shapes = jax.eval_shape(deep.init, jax.random.key(0), tokens)

        def loss(params, tokens):
            rngs = {DROPOUT: jax.random.key(0)}
            return jnp.sum(deep.apply({"params": params}, tokens, rngs=rngs))

        wide = jax.ShapeDtypeStruct((16, 32), jnp.int32)
        compiled = jax.jit(jax.grad(loss)).lower(shapes["params"], wide).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(24) < 2.2 * temporary(12)


@pytest.mark.parametrize("cross", [-0.1, 1.5])
def test_refuses_a_probability_out_of_range(cross):
    with pytest.raises(ReslabError, match="cross: expected at least 0 and at most 1"):
        StochasticKeysValues(cross=cross)
