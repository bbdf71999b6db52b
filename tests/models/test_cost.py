"""The closed form of the cost against the count of the program itself."""

import jax
import jax.numpy as jnp
import pytest

from reslab.core import registry
from reslab.core.trees import count_parameters, named_leaves, unbox
from reslab.models.cost import (
    active_parameters,
    effective_parameters,
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
    "looped, with its input": {
        "stack": "looped(loops=3, injection='concat', has_step_embedding=True)"
    },
    "newton": {"stack": "newton(parallel=3, iterations=2, start='forward')"},
    "cart": {"stack": "cart(loops=3)"},
    "cart, thawed": {"stack": "cart(loops=3, is_frozen=False)"},
    "act": {"stack": "act(loops=3)"},
    "ponder": {"stack": "ponder(loops=3, halting='palbert')"},
    "recursive": {"stack": "recursive(unique=2, lora_rank=2)"},
    "huginn": {"stack": "huginn(loops=3)"},
    "prelude and coda": {"stack": "looped(loops=3, prelude=1, coda=2)"},
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
    "experts": {
        "ffn": "experts(experts=4, chosen=2, hidden=8, shared_hidden=8, latent=8)"
    },
    "chain": {
        "ffn": "chain_of_experts(experts=4, chosen=1, hidden=8, shared_hidden=8, "
        "latent=8, is_shared_gated=True)"
    },
    "reused": {
        "ffn": (
            "reused(experts=4, hidden=8, is_first=True)",
            "reused(experts=4, hidden=8)",
        )
    },
    "macaron, experts": {"block": "macaron", "ffn": "experts(experts=4, chosen=1)"},
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


# The state before the first layer is a constant: nothing is computed for its gradient.
FORWARD = {"layerwise": "layerwise_recurrent(experts=4, hidden=8, router_width=4)"}


@pytest.mark.parametrize(
    "ffn, asked",
    [
        # Of 4 experts of 3 * 16 * 8 parameters in each of 4 layers.
        ("swiglu(hidden=8)", None),
        ("experts(experts=4, chosen=1, hidden=8)", 4),
        ("chain_of_experts(experts=4, chosen=1, hidden=8, iterations=3)", 12),
        ("reused(experts=4, chosen=2, hidden=8)", 8),
    ],
)
def test_active_parameters(ffn, asked):
    model, variables = make({"ffn": ffn}, False)
    params = variables["params"]
    stored = count_parameters(params)
    experts = sum(
        leaf.size
        for name, leaf in named_leaves(params).items()
        if name.endswith("/kernels")
    )
    assert (experts == 0) == (asked is None)
    each = 3 * 16 * 8
    wanted = stored - experts + (asked or 0) * each
    assert active_parameters(model, params) == wanted


@pytest.mark.parametrize("is_unrolled", FORMS)
@pytest.mark.parametrize("name", [*DESIGNS, *FORWARD])
def test_forward(name, is_unrolled):
    fields = {"ffn": FORWARD[name]} if name in FORWARD else DESIGNS[name]
    model, variables = make(fields, is_unrolled)

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


@pytest.mark.parametrize(
    ("stack", "depth", "like"),
    [
        ("looped(loops=3, prelude=1, coda=1)", 4, 8),
        ("recursive(unique=2)", 6, 6),
        ("act(loops=2, has_step_embedding=False)", 3, 6),
    ],
)
def test_effective_parameters_are_those_of_layers_that_share_nothing(
    stack, depth, like
):
    def parts(stack, depth):
        model, variables = make({"stack": stack, "depth": depth}, False)
        params = variables["params"]
        return params, effective_parameters(model, params)

    params, found = parts(stack, depth)
    flat, wanted = parts("uniform", like)
    assert wanted == count_parameters(flat)
    assert (
        found
        - sum(
            leaf.size
            for name, leaf in named_leaves(params).items()
            if name.startswith("layers/halt_")
        )
        == wanted
    )
    assert count_parameters(params) < wanted
