import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.core.trees import unbox
from reslab.models.lm import LanguageModel
from reslab.train.generate import generate, sample_token

LOGITS = jnp.log(jnp.asarray([[0.5, 0.3, 0.15, 0.05]]))


def drawn(**options):
    keys = jax.random.split(jax.random.key(0), 2000)
    tokens = jax.vmap(lambda key: sample_token(LOGITS, key, **options))(keys)
    return np.bincount(np.asarray(tokens).ravel(), minlength=4) / 2000


def test_sampling_follows_the_distribution():
    np.testing.assert_allclose(drawn(), [0.5, 0.3, 0.15, 0.05], atol=0.04)


def test_temperature_sharpens():
    sharp = np.asarray([0.5, 0.3, 0.15, 0.05]) ** 2
    np.testing.assert_allclose(drawn(temperature=0.5), sharp / sharp.sum(), atol=0.04)
    assert drawn(temperature=0)[0] == 1
    for tiny in (1e-37, 1e-38, 1e-45, 1e-300):  # Logits divided by it overflow.
        assert drawn(temperature=tiny)[0] == 1
        assert drawn(temperature=tiny, top_p=0.9)[0] == 1


def test_top_k_and_top_p_restrict_the_choice():
    np.testing.assert_allclose(drawn(top_k=2), [0.625, 0.375, 0, 0], atol=0.04)
    np.testing.assert_allclose(drawn(top_p=0.6), [0.625, 0.375, 0, 0], atol=0.04)
    assert drawn(top_p=0.5)[0] == 1
    for tiny in (1e-6, 1e-38, 1e-300):
        assert drawn(top_p=tiny)[0] == 1
        assert drawn(top_p=tiny, temperature=1e30)[0] == 1
    np.testing.assert_array_equal(drawn(top_k=10**30), drawn())


@pytest.mark.parametrize("temperature", [1e20, 1e38, 1e300, float("inf")])
def test_any_temperature_leaves_out_what_the_model_rules_out(temperature):
    logits = LOGITS.at[0, 1].set(-jnp.inf)
    keys = jax.random.split(jax.random.key(0), 2000)
    tokens = jax.vmap(lambda key: sample_token(logits, key, temperature=temperature))
    found = np.bincount(np.asarray(tokens(keys)).ravel(), minlength=4) / 2000
    np.testing.assert_allclose(found, [1 / 3, 0, 1 / 3, 1 / 3], atol=0.04)


@pytest.mark.parametrize(
    "options",
    [
        *({"temperature": value} for value in (-1.0, float("nan"), -float("inf"))),
        *({"top_p": value} for value in (0.0, -0.5, 1.5, float("nan"))),
        {"top_k": -1},
    ],
)
def test_options_out_of_range_are_refused(options):
    model = LanguageModel(vocabulary_size=13)
    with pytest.raises(ReslabError, match=f"{next(iter(options))}: expected"):
        generate(model, {}, jnp.zeros((1, 3), jnp.int32), 6, **options)


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param({"mixer": "attention(heads=2)"}, marks=pytest.mark.conformance),
        {"mixer": ("gated_delta(heads=2)", "attention(heads=2,window=4)")},
        {"stack": "looped(loops=2)", "residual": "hyper"},
    ],
    ids=["attention", "hybrid", "looped"],
)
def test_greedy_generation_equals_the_full_forward(parts):
    model = LanguageModel(
        vocabulary_size=13, features=16, depth=2, is_unrolled=False, **parts
    )
    prompt = jnp.asarray([[1, 5, 2, 7], [3, 3, 9, 11]])
    variables = unbox(model.init(jax.random.key(0), prompt))
    found = generate(model, variables, prompt, 6, temperature=0)
    assert found.shape == (2, 6)
    whole = jnp.concatenate([prompt, found], axis=1)
    logits = jax.jit(model.apply)(variables, whole)
    expected = np.argmax(logits[:, 3:-1], axis=-1)
    np.testing.assert_array_equal(found, expected)


def test_more_positions_than_the_model_knows_are_refused():
    model = LanguageModel(
        vocabulary_size=13, features=16, depth=1, position="learned", max_length=8
    )
    assert model.position_limit == 8
    assert LanguageModel(vocabulary_size=13, position="rope").position_limit is None
    with pytest.raises(ReslabError, match="length: expected at most 5 after a prompt"):
        generate(model, {}, jnp.zeros((1, 3), jnp.int32), 6)
