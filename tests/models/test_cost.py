"""The closed form of the cost against the count of the program itself."""

import jax
import jax.numpy as jnp
import pytest

from reslab.core import registry
from reslab.core.trees import unbox
from reslab.models.cost import (
    forward_flops_per_token,
    generation_bytes,
    training_flops_per_token,
)
from reslab.models.lm import LanguageModel
from reslab.observe.flops import count_flops

LENGTH = 8
TOKENS = jax.ShapeDtypeStruct((2, LENGTH), jnp.int32)
DESIGNS = {
    "plain": {},
    "hyper": {"residual": "hyper(streams=3)"},
    "grouped queries": {
        "mixer": "attention(heads=4, kv_heads=2, qk_norm='rms', use_bias=True)"
    },
    "wide heads, softcap": {"mixer": "attention(heads=2, head_dim=12, softcap=5.0)"},
    "looped": {"stack": "looped(loops=3)"},
    "post, layer, gelu, learned": {
        "placement": "post",
        "norm": "layer",
        "ffn": "gelu",
        "position": "learned",
    },
    "tied, padded": {"tie_embeddings": True, "vocabulary_multiple": 16},
    "first values": {"mixer": "attention(heads=2, value_path='value_residual')"},
    "gated delta": {"mixer": "gated_delta(heads=2)"},
    "one in three": {
        "mixer": ("gated_delta(heads=2)", "gated_delta(heads=2)", "attention(heads=2)")
    },
    "parallel, noble, polynorm": {
        "block": "parallel",
        "linear": "noble(rank=4)",
        "ffn": "polynorm",
    },
    "macaron, memory": {"block": "macaron", "linear": "memory_lookup(bits=4)"},
    "hourglass, chains": {
        "block": ("hourglass(lift=32)", "hourglass(bottlenecks=2)"),
        "linear": "chain(chains=(1, 1))",
    },
    "reversible": {"block": "reversible", "residual": "reversible"},
}


FORMS = [False, pytest.param(True, marks=pytest.mark.conformance)]


@pytest.fixture(params=DESIGNS)
def design(request):
    return DESIGNS[request.param]


def make(fields, is_unrolled):
    defaults = {"features": 16, "depth": 4, "mixer": "attention(heads=2)"}
    model = LanguageModel(
        vocabulary_size=21, is_unrolled=is_unrolled, **defaults | fields
    )
    return model, unbox(jax.eval_shape(model.init, jax.random.key(0), TOKENS))


@pytest.mark.parametrize("is_unrolled", FORMS)
def test_forward(design, is_unrolled):
    model, variables = make(design, is_unrolled)

    def losses(variables, tokens):
        return model.apply(variables, tokens, tokens, method="losses")

    said = TOKENS.size * forward_flops_per_token(model, variables["params"], LENGTH)
    assert count_flops(losses, variables, TOKENS) == said


@pytest.mark.parametrize("is_unrolled", FORMS)
def test_training(design, is_unrolled):
    model, variables = make(design, is_unrolled)

    def loss(variables, tokens):
        losses, _ = model.apply(variables, tokens, tokens, method="losses")
        return jnp.mean(losses)

    said = TOKENS.size * training_flops_per_token(model, variables["params"], LENGTH)
    counted = count_flops(jax.value_and_grad(loss), variables, TOKENS)
    assert counted == said + TOKENS.size * recomputed(model)


def recomputed(model):
    """What some layers compute otherwise than twice backward, whatever `remat` says.

    Gated delta layers read each token's key in the memory once more, instead of
    keeping what was read; reversible ones do all again once. Such work is no part of
    the model's FLOPs. A fixed projection has no gradient.
    """
    kinds = model.mixer if isinstance(model.mixer, tuple) else (model.mixer,)
    total = 0
    if model.block == "reversible":
        variables = jax.eval_shape(model.init, jax.random.key(0), TOKENS)
        whole = forward_flops_per_token(model, unbox(variables)["params"], LENGTH)
        return whole - 2 * model.features * model.padded_vocabulary
    if "hourglass(lift=32)" in model.block:
        total -= model.depth // 2 * 2 * model.features * 32
    for layer in range(model.depth):
        kind = kinds[layer % len(kinds)]
        if kind.startswith("gated_delta"):
            mixer = registry.make("mixers", kind)
            total += mixer.mixing_flops(LENGTH, model.features) // 2
    return total


@pytest.mark.parametrize(
    ("mixer", "caches"),
    [
        ("attention(heads=2)", 8),
        ("attention(heads=2, value_path='shared_values')", 5),
        ("attention(heads=2, value_path='shared_kv')", 2),
        ("attention(heads=2, value_path='stochastic_kv')", 8),
    ],
    ids=str,
)
def test_what_generation_keeps_and_sharing_saves(mixer, caches):
    model, _ = make({"mixer": mixer}, is_unrolled=False)
    kept, alone = generation_bytes(model, 32)
    # Keys or values of 32 tokens, 16 features, float32; a length for each layer.
    assert kept == caches * 32 * 16 * 4 + 4 * 4
    assert alone == 8 * 32 * 16 * 4 + 4 * 4
