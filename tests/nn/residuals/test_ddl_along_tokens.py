"""Deep delta learning that looks along the sequence: expansion and taps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reslab.core.errors import ReslabError
from reslab.core.trees import unbox
from reslab.models.lm import LanguageModel
from reslab.nn.base.token_shifts import Tokens, telling_tokens
from reslab.nn.residuals.ddl import DeepDeltaLearning, Expansion, Reading

SPEC = "ddl(values=2, expansion=3, taps=2)"


def test_golden_of_the_expansion(golden, x64):
    data = {k.removeprefix("expand_"): v for k, v in golden("ddl").items()}
    x, weight = data["x"], data["p_conv_weight"]
    values = weight.shape[0] // x.shape[-1]
    module = Expansion(values, weight.shape[-1], jnp.float64)

    def run(x, weight):
        # Theirs is (features * values, 1, taps), the oldest tap first.
        taps = weight.reshape(-1, values, weight.shape[-1])[..., ::-1]
        params = {"weights": jnp.transpose(taps, (2, 1, 0))}
        return jnp.stack(module.apply({"params": params}, x), axis=-1)

    y, pull = jax.vjp(run, jnp.asarray(x), jnp.asarray(weight))
    by_x, by_weight = pull(jnp.asarray(data["cot"]))
    np.testing.assert_allclose(y, data["out"], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(by_x, data["grad_x"], rtol=1e-9, atol=1e-12)
    wanted = data["grad_p_conv_weight"]
    np.testing.assert_allclose(by_weight, wanted, rtol=1e-9, atol=1e-12)


def test_equation_of_the_taps(x64):
    rng = np.random.default_rng(0)
    state, cotangent = rng.normal(size=(2, 2, 5, 4)), rng.normal(size=(2, 5, 4))
    weights = rng.normal(size=(3, 2, 4))
    reading = Reading(3, param_dtype=jnp.float64)

    def run(state, weights):
        return reading.apply({"params": {"weights": weights}}, tuple(state))

    y, pull = jax.vjp(run, jnp.asarray(state), jnp.asarray(weights))
    by_state, by_weights = pull(jnp.asarray(cotangent))
    wanted, slope, slopes = np.zeros((2, 5, 4)), np.zeros_like(state), 0 * weights
    for i in range(3):
        for t in range(i, 5):
            for j in range(2):
                wanted[:, t] += weights[i, j] * state[j, :, t - i]
                slope[j, :, t - i] += weights[i, j] * cotangent[:, t]
                slopes[i, j] += np.sum(cotangent[:, t] * state[j, :, t - i], 0)
    for found, one in ((y, wanted), (by_state, slope), (by_weights, slopes)):
        np.testing.assert_allclose(found, one, rtol=1e-10, atol=1e-12)


def test_starts_as_copies_read_alone():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 4)), jnp.float32)
    plain = DeepDeltaLearning(values=2)
    wide = DeepDeltaLearning(values=2, expansion=3, taps=2)

    def run(residual):
        def through(module, x):
            stream = module(module.widen(x), jnp.tanh, site=0)
            return module.narrow(stream)

        return residual.init_with_output(jax.random.key(0), x, method=through)[0]

    assert wide.follows_tokens
    assert not plain.follows_tokens
    with telling_tokens(Tokens()):
        np.testing.assert_allclose(run(wide), run(plain), rtol=1e-6)


@pytest.fixture(scope="module")
def model():
    return LanguageModel(
        vocabulary_size=7,
        features=8,
        depth=2,
        mixer="attention(heads=2)",
        ffn="gelu(hidden=8)",
        residual=SPEC,
    )


@pytest.fixture(scope="module")
def params(model):
    tokens = jnp.zeros((1, 2), jnp.int32)
    start = unbox(jax.jit(model.init)(jax.random.key(0), tokens)["params"])
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda p: p + 0.3 * jnp.asarray(rng.normal(size=p.shape), p.dtype), start
    )


def positions_of(tokens):
    return jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)


@pytest.mark.conformance
def test_documents_are_apart_and_parts_are_the_whole(model, params):
    """Packed rows, a prompt and single tokens, and a row with padding."""
    tokens = np.random.default_rng(0).integers(7, size=(2, 6))

    @jax.jit
    def run(tokens, positions, segments, state):
        return model.apply(
            {"params": params},
            *(tokens,),
            positions=positions,
            segments=segments,
            state=state,
            method="hidden",
        )

    places = positions_of(tokens)
    whole, _ = run(tokens, places, None, None)
    state, parts = model.init_state(2, 6), []
    for part in (slice(0, 3), slice(3, 4), slice(4, 5), slice(5, 6)):
        y, state = run(tokens[:, part], places[:, part], None, state)
        parts.append(y)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, atol=2e-5)

    packed = np.concatenate([tokens, tokens], 1)
    segments = np.repeat(np.asarray([[1, 2], [1, 2]]), 6, axis=1)
    y, _ = run(packed, np.concatenate([places, places], 1), segments, None)
    np.testing.assert_allclose(y[:, 6:], whole, atol=2e-5)

    real = np.asarray([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    shifted = np.where(
        real > 0, np.asarray([tokens[0][[0, 0, 0, 1, 2, 3]], tokens[1]]), 0
    )
    ahead = np.where(real > 0, np.asarray([[0, 0, 0, 1, 2, 3], places[1]]), 0)
    y, state = run(shifted, ahead, real, model.init_state(2, 8))
    np.testing.assert_allclose(y[0, 2:], whole[0, :4], atol=2e-5)
    np.testing.assert_allclose(y[1], whole[1], atol=2e-5)


@pytest.mark.conformance
def test_trains_and_sees_no_later_token(model, params):
    tokens = jnp.asarray(np.random.default_rng(0).integers(7, size=(2, 6)))

    @jax.jit
    def step(params):
        def loss(params):
            logits = model.apply({"params": params}, tokens)[:, :-1]
            targets = tokens[:, 1:]
            return optax.softmax_cross_entropy_with_integer_labels(
                logits, targets
            ).mean()

        value, slopes = jax.value_and_grad(loss)(params)
        return value, jax.tree.map(lambda p, g: p - 0.1 * g, params, slopes), slopes

    first, new, slopes = step(params)
    assert all(np.any(np.asarray(slope) != 0) for slope in jax.tree.leaves(slopes))
    for _ in range(8):
        last, new, _ = step(new)
    assert last < 0.9 * first

    run = jax.jit(lambda tokens: model.apply({"params": params}, tokens))
    change = np.abs(run(tokens.at[:, 3].add(1) % 7) - run(tokens))
    assert np.max(change[:, :3]) < 1e-6
    assert np.min(np.max(change[:, 3:], axis=-1)) > 1e-4


@pytest.mark.parametrize("field", ["expansion", "taps"])
def test_refuses_one_column(field):
    with pytest.raises(ReslabError, match=f"{field}: expected 0 where the state has"):
        DeepDeltaLearning(**{field: 4})
