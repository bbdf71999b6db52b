"""Layers for some tokens: who is computed, what passes by, and what is learned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.core.losses import LOSSES
from reslab.core.randomness import DROPOUT
from reslab.core.trees import named_leaves, nested_leaves
from reslab.models.cost import forward_flops_per_token
from reslab.observe.flops import count_flops
from tests.nn.stacks.conftest import TOKENS, make, start

TRAINING = {"rngs": {DROPOUT: jax.random.key(0)}, "mutable": [LOSSES]}


def one_layer(spec="mod(capacity=0.5, layers=(0,))", **weights):
    """A model of one layer, and variables whose router has given weights."""
    model = make(spec, depth=1)
    variables = start(model)
    leaves = named_leaves(variables)
    for name in leaves:
        for part, value in weights.items():
            if name.endswith(part):
                leaves[name] = np.full_like(leaves[name], value)
    return model, nested_leaves(leaves)


def test_no_choice_is_the_uniform_stack_up_to_the_gate():
    uniform, every = make("uniform"), (0, 1, 2, 3)
    model = make(f"mod(capacity=1.0, layers={every}, gate='sigmoid')")
    variables = start(model)
    leaves = named_leaves(variables)
    routers = [name for name in leaves if name.endswith("router_weight")]
    assert len(routers) == 1
    # sigmoid is 1/2: layers that add twice as much are those of the uniform stack.
    plain = {name: leaf for name, leaf in leaves.items() if name not in routers}
    wanted = uniform.apply(nested_leaves(plain), TOKENS)
    far = {name: 0 * leaves[name] for name in routers}

    def halved(variables):
        return model.apply(nested_leaves({**plain, **far}), TOKENS)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.nn, "sigmoid", lambda r: jnp.ones_like(r))
        found = halved(variables)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert np.max(np.abs(halved(variables) - wanted)) > 1e-3


def test_training_takes_the_largest_scores_of_each_row(x64):
    wide = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    model = make("mod(capacity=0.5, layers=(0,))", depth=1, **wide)
    plain = make("uniform", depth=1, **wide)
    variables = start(model)
    weight = named_leaves(variables)[
        "params/layers/body/segment_0/block_0/router_weight"
    ][0]
    x = variables["params"]["embedding"][TOKENS]
    r = x @ weight
    chosen = np.sort(np.argsort(-r, axis=1)[:, :3], axis=1)

    def layers(model, variables, x, positions, **options):
        stack = model.make_stack(parent=None)
        leaves = variables["params"]["layers"]
        return stack.apply({"params": leaves}, x, positions=positions, **options)

    def without(variables):
        leaves = named_leaves(variables)
        return nested_leaves(
            {k: v for k, v in leaves.items() if not k.endswith("router_weight")}
        )

    positions = np.broadcast_to(np.arange(6), TOKENS.shape)
    (y, _), losses = layers(model, variables, x, positions, **TRAINING)
    rows = np.arange(2)[:, None]
    few, places = x[rows, chosen], positions[rows, chosen]
    alone, _ = layers(plain, without(variables), few, places)
    wanted = np.array(x)
    wanted[rows, chosen] += r[rows, chosen][..., None] * (alone - few)
    np.testing.assert_allclose(y, wanted, rtol=1e-12)
    target = np.zeros_like(r)
    np.put_along_axis(target, chosen, 1.0, axis=1)
    p = 1 / (1 + np.exp(-r))
    entropy = -np.mean(target * np.log(p) + (1 - target) * np.log(1 - p))
    (loss,) = jax.tree.leaves(losses)
    np.testing.assert_allclose(np.sum(loss), 0.01 * entropy, rtol=1e-6)


def test_evaluated_a_layer_computes_what_the_predictor_says():
    spec = "mod(capacity=0.5, layers=(0,), predictor_hidden=3)"
    none, variables = one_layer(spec, predictor_weight=-1e3)
    leaves = named_leaves(variables)
    hidden = next(n for n in leaves if n.endswith("predictor_hidden/bias"))
    leaves[hidden] = np.full_like(leaves[hidden], 50.0)
    x = none.apply(nested_leaves(leaves), TOKENS)
    # Nothing is computed: the head reads the embedding.
    bare = make("uniform", depth=1)
    plain = {k: 0 * v if "/layers/" in k else v for k, v in leaves.items()}
    plain = {k: v for k, v in plain.items() if "router" not in k and "predict" not in k}
    np.testing.assert_allclose(x, bare.apply(nested_leaves(plain), TOKENS), atol=1e-6)


@pytest.mark.conformance
def test_the_predictor_has_no_gradient_to_the_stream():
    model = make("mod(capacity=0.5, layers=(0,), predictor_hidden=3)", depth=1)
    variables = start(model)

    def loss(params):
        _, losses = model.apply({"params": params}, TOKENS, **TRAINING)
        return jnp.sum(jax.tree.leaves(losses)[0])

    slopes = named_leaves(jax.grad(loss)(variables["params"]))
    moved = {name for name, slope in slopes.items() if np.any(slope != 0)}
    assert moved and all("/predictor_" in name for name in moved)


def test_padding_is_never_computed():
    model = make("mod(capacity=0.5, layers=(0, 2))")
    variables = start(model)
    segments = np.where(np.arange(6) < 4, 1, 0) * np.ones_like(TOKENS)
    other = np.where(segments > 0, TOKENS, (TOKENS + 5) % 24)
    for options in ({}, TRAINING):
        first, second = (
            jax.tree.leaves(
                model.apply(variables, tokens, segments=segments, **options)
            )
            for tokens in (TOKENS, other)
        )
        np.testing.assert_allclose(first[0][:, :4], second[0][:, :4], atol=1e-6)
        for a, b in zip(first[1:], second[1:], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)


def test_flops_are_those_of_training():
    model = make("mod(capacity=0.5, predictor_hidden=4)")
    variables = start(model)
    said = forward_flops_per_token(model, variables["params"], 6)

    def run(variables, tokens):
        return model.apply(variables, tokens, **TRAINING)

    assert count_flops(run, variables, TOKENS) == TOKENS.size * said
    whole = forward_flops_per_token(make("uniform"), variables["params"], 6)
    assert said < whole


@pytest.mark.parametrize(
    ("stack", "fields", "message"),
    [
        ("mod(capacity=0.0)", {}, "capacity: expected above 0 and at most 1"),
        ("mod(layers=(4,))", {}, "numbers of layers, from 0 to 3; got 4"),
        ("mod", {"residual": "attnres"}, "expected one by which tokens can pass"),
        (
            "mod",
            {"mixer": "attention(heads=2, value_path='value_residual')"},
            r"layer 1: expected layers that may leave out tokens; got a depth memory",
        ),
        ("mod", {"block": "reversible", "residual": "reversible"}, "that is undone"),
    ],
)
def test_refuses_in_one_line(stack, fields, message):
    with pytest.raises(ReslabError, match=message) as caught:
        make(stack, **fields).init(jax.random.key(0), TOKENS)
    assert "\n" not in str(caught.value)
