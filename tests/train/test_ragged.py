"""Prompts of different lengths in one batch are continued as each would be alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.core.trees import unbox
from reslab.models.lm import LanguageModel
from reslab.nn.mixers.gated_delta import build as GatedDelta
from reslab.train.generate import generate

PROMPTS = [[3, 1, 4, 1, 5, 9], [2, 6], [5, 3, 5, 8]]
MODELS = {
    "attention": {},
    "grouped, window": {"mixer": "attention(heads=2, kv_heads=1, window=3)"},
    "window, mixed": {"mixer": ("attention(heads=2, window=4)", "attention(heads=2)")},
    "gated delta": {"mixer": "gated_delta(heads=2)"},
    "latent": {"mixer": "latent_attention(heads=2)"},
    "lstm": {"mixer": "lstm(hidden=8, layers=2)"},
    "gru": {"mixer": "gru(hidden=8)"},
    "retention": {"mixer": "retention(heads=2)"},
    "rg_lru": {"mixer": "rg_lru(heads=2)"},
    "short convolution": {"mixer": "short_convolution"},
    "mamba": {"mixer": "mamba(state_size=2)"},
    "mamba2": {"mixer": "mamba2(heads=2, state_size=2)"},
    "hybrid": {"mixer": ("gated_delta(heads=2)", "attention(heads=2)")},
    "shared keys": {"mixer": "attention(heads=2, value_path='shared_kv')"},
    "value residual": {"mixer": "attention(heads=2, value_path='value_residual')"},
    "learned positions": {"position": "learned"},
    "looped": {"stack": "looped(loops=2)", "residual": "hyper(streams=2)"},
    "history": {"residual": "attnres"},
}


def drawn(**fields):
    defaults = {"features": 16, "depth": 2, "ffn": "gelu(hidden=16)"}
    defaults |= {"mixer": "attention(heads=2)", "max_length": 16}
    model = LanguageModel(vocabulary_size=16, **defaults | fields)
    tokens = jnp.zeros((1, 4), jnp.int32)
    shapes = unbox(jax.eval_shape(model.init, jax.random.key(0), tokens))["params"]
    rng = np.random.default_rng(7)
    params = jax.tree.map(
        lambda s: jnp.asarray(0.4 * rng.standard_normal(s.shape), s.dtype), shapes
    )
    return model, {"params": params}


def padded(side):
    """The prompts in one array, and which of its tokens count."""
    tokens, is_prompt = np.full((3, 7), 11), np.zeros((3, 7), bool)
    for row, prompt in enumerate(PROMPTS):
        free, mixed = 7 - len(prompt), np.random.default_rng(row).permutation(7)
        place = {
            "left": np.arange(free, 7),
            "right": np.arange(len(prompt)),
            "between": np.sort(mixed[: len(prompt)]),
        }[side]
        tokens[row, place], is_prompt[row, place] = prompt, True
    return tokens, is_prompt


@pytest.mark.conformance
@pytest.mark.parametrize("name", MODELS)
def test_each_prompt_is_continued_as_alone(name):
    model, variables = drawn(**MODELS[name])
    alone = [
        generate(model, variables, [prompt], 6, temperature=0)[0] for prompt in PROMPTS
    ]
    for side in ("left", "right", "between"):
        tokens, is_prompt = padded(side)
        found = generate(
            model, variables, tokens, 6, is_prompt=is_prompt, temperature=0
        )
        np.testing.assert_array_equal(found, alone, err_msg=side)
    np.testing.assert_array_equal(
        generate(model, variables, PROMPTS, 6, temperature=0), alone
    )


@pytest.mark.conformance
@pytest.mark.parametrize("name", ["attention", "grouped, window", "gated delta"])
def test_a_prompt_in_parts_leaves_the_state_of_the_whole(name):
    model, variables = drawn(**MODELS[name])
    tokens, is_prompt = padded("right")
    positions = np.maximum(np.cumsum(is_prompt, 1) - 1, 0)

    def read(parts):
        state = model.init_state(3, 12)
        for part in parts:
            _, state = model.apply(
                variables,
                tokens[:, part],
                positions=positions[:, part],
                segments=is_prompt[:, part].astype(np.int32),
                state=state,
                method="hidden",
            )
        next_token, _ = model.apply(
            variables,
            np.full((3, 1), 7),
            positions=np.sum(is_prompt, 1, keepdims=True),
            state=state,
            method="hidden",
        )
        return next_token

    whole = read([slice(0, 7)])
    parts = read([slice(0, 2), slice(2, 3), slice(3, 7)])
    np.testing.assert_allclose(parts, whole, atol=2e-5)


def test_the_cache_has_a_length_for_every_row():
    model, variables = drawn()
    tokens, is_prompt = padded("left")
    _, state = model.apply(
        variables,
        tokens,
        segments=is_prompt.astype(np.int32),
        state=model.init_state(3, 12),
        method="hidden",
    )
    lengths = [leaf for leaf in jax.tree.leaves(state) if leaf.dtype == jnp.int32]
    for leaf in lengths:
        np.testing.assert_array_equal(leaf[0], [6, 2, 4])


@pytest.mark.parametrize(
    "prompt, is_prompt, message",
    [
        ([[1], []], None, "at least one token in every row"),
        ([[1, 2]], [[True]], r"is_prompt: expected shape \(1, 2\)"),
        ([[1, 2]], [[False, False]], "at least one token in every row"),
    ],
)
def test_wrong_prompts_are_refused(prompt, is_prompt, message):
    model, variables = drawn()
    with pytest.raises(ReslabError, match=message):
        generate(model, variables, prompt, 2, is_prompt=is_prompt)


def test_a_mixer_that_would_take_padding_in_is_refused():
    class Unaware(GatedDelta):
        passes_padding = False

    model, variables = drawn(mixer=("attention(heads=2)", Unaware))
    with pytest.raises(ReslabError, match="expected prompts of one length"):
        generate(model, variables, PROMPTS, 2)
