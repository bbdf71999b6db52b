"""Layers in a cycle: the loop they are, and what keeps them apart."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.core.losses import LOSSES, total_loss
from reslab.core.randomness import DROPOUT
from reslab.core.trees import count_parameters, named_leaves
from tests.nn.stacks.conftest import TOKENS, make, start


@functools.cache
def size(stack, depth):
    model = make(stack, depth=depth)
    return count_parameters(
        jax.eval_shape(model.init, jax.random.key(0), TOKENS)["params"]
    )


def test_without_factors_it_is_the_loop():
    loop, cycle = make("looped(loops=2)", depth=2), make("recursive(unique=2)")
    variables = start(loop)
    assert jax.tree.structure(variables) == jax.tree.structure(start(cycle))
    np.testing.assert_allclose(
        cycle.apply(variables, TOKENS), loop.apply(variables, TOKENS), atol=1e-6
    )


def test_parameters_grow_with_depth_by_factors_alone():
    assert size("recursive(unique=2)", 4) == size("recursive(unique=2)", 8)
    assert size("recursive(unique=2)", 2) == size("uniform", 2)
    step = size("recursive(unique=2, lora_rank=1)", 6) - size(
        "recursive(unique=2, lora_rank=1)", 4
    )
    # Of two layers, one more for each: query, key, value, output, up and down.
    assert step == 2 * 6 * (8 + 8)


def test_factors_tell_the_depths_apart():
    model = make("recursive(unique=1, lora_rank=2)")
    variables = start(model)
    kernels = {
        name: leaf.shape
        for name, leaf in named_leaves(variables["params"]).items()
        if "pass_" in name
    }
    assert len(kernels) == 12
    assert all(shape[:2] == (1, 4) for shape in kernels.values())

    def loss(variables):
        return np.float32(1) * model.apply(variables, TOKENS).sum()

    slopes = named_leaves(jax.jit(jax.grad(loss))(variables)["params"])
    for name in kernels:
        rows = np.asarray(slopes[name])[0].reshape(4, -1)
        assert np.linalg.matrix_rank(rows) == 4, name


@pytest.mark.parametrize(
    ("stack", "fields", "message"),
    [
        ("recursive(unique=3)", {}, r"unique: expected a divisor of model.depth \(4\)"),
        ("recursive(unique=0)", {}, "unique: expected at least 1"),
        ("recursive(lora_rank=2)", {"linear": "noble"}, "or model.linear 'dense'"),
        (
            "recursive(unique=1)",
            {"mixer": ("attention(heads=2)", "gated_delta(heads=2)")},
            "layers 0 and 1: expected the same parts",
        ),
        (
            "recursive(unique=2)",
            {"placement": "mix_ln(alpha=0.25)"},
            "layers 0 and 2: expected the same parts",
        ),
    ],
)
def test_refuses_in_one_line(stack, fields, message):
    with pytest.raises(ReslabError, match=message) as caught:
        make(stack, **fields).init(jax.random.key(0), TOKENS)
    assert "\n" not in str(caught.value)


@pytest.mark.conformance
def test_earlier_outputs_learn_from_the_last(x64):
    fields = {"depth": 6, "dtype": jnp.float64, "param_dtype": jnp.float64}
    spec = "recursive(unique=2, lora_rank=2, exit_weight=0.1{})"
    model = make(spec.format(""), **fields)
    variables = start(model)
    rngs = {DROPOUT: jax.random.key(0)}
    segments = np.where(np.arange(6) < 4, 1, 0) * np.ones_like(TOKENS)
    options = {"segments": segments, "method": "losses", "mutable": [LOSSES]}
    (nll, _), written = model.apply(variables, TOKENS, TOKENS, rngs=rngs, **options)
    each = [
        jax.nn.log_softmax(
            make(spec.format(f", exit_after={n}"), **fields).apply(
                variables, TOKENS, segments=segments
            )
        )
        for n in (1, 2, 3)
    ]
    last = each[-1]
    apart = [np.sum(np.exp(last) * (last - p), axis=-1)[:, :4].mean() for p in each]
    np.testing.assert_allclose(total_loss(written), 0.1 * sum(apart), rtol=1e-6)
    # The loss itself is that of the last output.
    picked = np.take_along_axis(np.asarray(last), TOKENS[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(nll[:, :4], -picked[:, :4], rtol=1e-6)


@pytest.mark.conformance
def test_a_teacher_does_not_learn(x64):
    fields = {"depth": 2, "dtype": jnp.float64, "param_dtype": jnp.float64}
    model = make("recursive(unique=1, lora_rank=2, exit_weight=1.0)", **fields)
    variables = start(model)

    def loss(params):
        _, written = model.apply(
            *({"params": params}, TOKENS, TOKENS),
            rngs={DROPOUT: jax.random.key(0)},
            method="losses",
            mutable=[LOSSES],
        )
        return total_loss(written)

    slopes = named_leaves(jax.jit(jax.grad(loss))(variables["params"]))
    for name, slope in slopes.items():
        if "pass_" in name:
            # Of the layer, of each pass: the second is the teacher's alone.
            assert np.any(slope[0, 0] != 0), name
            assert not np.any(slope[0, 1]), name


def test_a_pass_is_the_loop_cut_short():
    whole = make("recursive(unique=2, exit_after=1)")
    variables = start(whole)
    short = make("uniform", depth=2)
    np.testing.assert_allclose(
        whole.apply(variables, TOKENS), short.apply(variables, TOKENS), atol=1e-6
    )
    many = make("recursive(unique=2, exit_after=3)")
    with pytest.raises(ReslabError, match="exit_after: expected at most 2, the passes"):
        many.init(jax.random.key(0), TOKENS)
