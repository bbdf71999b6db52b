"""Unified skipping: which layers are kept, and what later tokens see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.core.taps import TAPS
from reslab.nn.stacks.unified_skipping import kept_layers
from reslab.train.generate import generate
from tests.nn.stacks.conftest import TOKENS, make, start


@pytest.mark.parametrize(
    ("depth", "speedup", "kept"),
    [
        (24, 1.0, tuple(range(24))),
        (24, 2.0, (0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 23)),
        (24, 3.0, (0, 3, 6, 9, 12, 15, 18, 23)),
        (28, 1.5, (*range(17), 27)),
        (4, 2.0, (0, 3)),
        (1, 1.0, (0,)),
    ],
)
def test_keeps_the_layers_of_the_published_rule(depth, speedup, kept):
    assert kept_layers(depth, speedup) == kept


def test_refuses_to_keep_fewer_than_two():
    with pytest.raises(ReslabError, match="speedup: expected at most 2, which keeps 2"):
        make("unified_skipping(speedup=3.0)").init(jax.random.key(0), TOKENS)


def cached(model, variables, cuts):
    state, parts = model.init_state(2, 6), []
    for first, last in cuts:
        x, state = model.apply(
            *(variables, TOKENS[:, first:last]),
            positions=np.broadcast_to(np.arange(first, last), (2, last - first)),
            state=state,
            method="hidden",
        )
        parts.append(model.apply(variables, x, method="logits"))
    return jnp.concatenate(parts, 1)


@pytest.mark.conformance
@pytest.mark.parametrize(
    "mixer",
    [
        "attention(heads=2)",
        pytest.param(("gru", "attention(heads=2)"), marks=pytest.mark.conformance),
    ],
)
def test_a_prompt_and_its_rest_are_the_full_pass(mixer):
    model = make("unified_skipping(prompt=3)", mixer=mixer)
    variables = start(model)
    wanted = jax.jit(model.apply)(variables, TOKENS)
    found = cached(model, variables, ((0, 3), (3, 4), (4, 6)))
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    # The prompt meets all layers; what follows, two of four.
    every = make("uniform", mixer=mixer).apply(variables, TOKENS)
    np.testing.assert_allclose(found[:, :3], every[:, :3], atol=1e-5)
    assert np.all(np.any(np.abs(found - every)[:, 3:] > 1e-3, axis=-1))


def test_speed_one_and_long_prompts_are_the_uniform_stack():
    variables = start(make("uniform"))
    wanted = make("uniform").apply(variables, TOKENS)
    for stack in ("unified_skipping(speedup=1.0, prompt=1)", "unified_skipping"):
        found = make(stack).apply(variables, TOKENS)
        np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.conformance
def test_later_tokens_are_not_computed_in_other_layers():
    model = make("unified_skipping(prompt=2)")
    variables = start(model)
    wanted = generate(model, variables, TOKENS[:, :3], 4, temperature=0)
    state = model.init_state(2, 6)
    positions = np.broadcast_to(np.arange(6), (2, 6))

    def step(variables, first, last, state):
        return model.apply(
            *(variables, TOKENS[:, first:last]),
            positions=positions[:, first:last],
            state=state,
            method="hidden",
        )

    _, state = step(variables, 0, 3, state)
    x, _ = jax.jit(step, static_argnums=(1, 2))(variables, 3, 4, state)
    layers = variables["params"]["layers"]
    broken = jax.tree.map(lambda a: jnp.asarray(a).at[1:3].set(jnp.nan), layers)
    other = {"params": {**variables["params"], "layers": broken}}
    y, _ = jax.jit(step, static_argnums=(1, 2))(other, 3, 4, state)
    np.testing.assert_array_equal(x, y)
    assert wanted.shape == (2, 4)


def test_tells_that_probes_want_every_token():
    model = make("unified_skipping(prompt=2)")
    variables = start(model)
    with pytest.raises(ReslabError, match="expected a prompt of all 6 tokens"):
        model.apply(variables, TOKENS, mutable=[TAPS])
