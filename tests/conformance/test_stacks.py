"""What every stack keeps, over several designs of its layers."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core import registry
from reslab.core.trees import named_leaves, unbox
from reslab.models.cost import forward_flops_per_token
from reslab.observe.flops import count_flops
from reslab.parallel.mesh import make_mesh

DESIGNS = {
    "one kind of layer": {},
    # Two kinds that do not fit the depth, first values, and several streams.
    "everything at once": {
        "mixer": (
            "attention(heads=2, value_path='value_residual')",
            "gated_delta(heads=2)",
        ),
        "ffn": ("swiglu(hidden=32)", "gelu(hidden=32)"),
        "residual": "hyper(streams=2)",
    },
}
CASES = [
    pytest.param((stack, design), id=f"{stack}-{design}", marks=marks)
    for stack in registry.names("stacks")
    for design, marks in zip(DESIGNS, ((), pytest.mark.conformance), strict=True)
]


@pytest.fixture(scope="module", params=CASES)
def fields(request):
    stack, design = request.param
    return {"stack": stack, **DESIGNS[design]}


@pytest.fixture(scope="module")
def model(fields, small_model):
    return small_model(**fields)


@pytest.fixture(scope="module")
def start(model, tokens):
    return unbox(jax.jit(model.init)(jax.random.key(0), tokens)["params"])


@pytest.fixture(scope="module")
def params(start, randomized):
    return randomized(start)


@pytest.fixture(scope="module")
def scanned(model, params, tokens, logits_and_gradient):
    return logits_and_gradient(model, params, tokens)


def test_scanned_is_unrolled(
    fields, small_model, params, tokens, scanned, logits_and_gradient, assert_close
):
    model = small_model(**fields, is_unrolled=True)
    assert_close(logits_and_gradient(model, params, tokens), scanned, 1e-10)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_recomputing_changes_nothing(
    fields,
    small_model,
    params,
    tokens,
    scanned,
    logits_and_gradient,
    assert_close,
    remat,
):
    model = small_model(**fields, remat=remat)
    assert_close(logits_and_gradient(model, params, tokens), scanned, 1e-10)


def test_starts_the_same_scanned_or_unrolled(fields, small_model, start, tokens):
    model = small_model(**fields, is_unrolled=True)
    unrolled = unbox(jax.jit(model.init)(jax.random.key(0), tokens)["params"])
    assert jax.tree.structure(unrolled) == jax.tree.structure(start)
    chex.assert_trees_all_equal(unrolled, start)


def test_every_layer_starts_with_kernels_of_its_own(start):
    kernels = {n: k for n, k in named_leaves(start).items() if n.endswith("/kernel")}
    assert kernels
    for name, kernel in kernels.items():
        layers = np.asarray(kernel).reshape(kernel.shape[0], -1)
        likeness = np.corrcoef(layers) - np.eye(len(layers))
        assert np.max(np.abs(likeness)) < 0.5, name


def test_every_parameter_receives_a_gradient(
    scanned, assert_gradient_reaches_every_parameter
):
    _, gradient = scanned
    assert_gradient_reaches_every_parameter(gradient)


@pytest.mark.conformance
def test_every_parameter_changes_the_output(
    model, params, tokens, assert_every_parameter_changes
):
    assert_every_parameter_changes(lambda p: model.apply({"params": p}, tokens), params)


def test_whole_is_prefill_and_one_token_at_a_time(model, params, tokens):
    batch, length = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(length), (batch, length))

    @jax.jit
    def advance(tokens, positions, state):
        return model.apply(
            {"params": params},
            tokens,
            positions=positions,
            state=state,
            method="hidden",
        )

    wanted, _ = advance(tokens, positions, None)
    state, parts = model.init_state(batch, length), []
    for start, stop in ((0, 5), (5, 6), (6, 7), (7, 8)):
        part = slice(start, stop)
        y, new_state = advance(tokens[:, part], positions[:, part], state)
        assert jax.tree.map(jnp.shape, new_state) == jax.tree.map(jnp.shape, state)
        state = new_state
        parts.append(y)
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), wanted, atol=2e-5)


def test_no_token_changes_an_earlier_one(model, params, tokens):
    run = jax.jit(lambda tokens: model.apply({"params": params}, tokens))
    other = tokens.copy()
    other[:, 5] = (tokens[:, 5] + 1) % model.vocabulary_size
    change = np.abs(run(other) - run(tokens))
    assert np.max(change[:, :5]) <= 1e-5
    assert np.all(np.max(change[:, 5], axis=-1) > 1e-4)


@pytest.mark.parametrize("is_unrolled", [False, True])
def test_costs_what_it_says(fields, small_model, tokens, is_unrolled):
    model = small_model(**fields, is_unrolled=is_unrolled)
    variables = unbox(jax.eval_shape(model.init, jax.random.key(0), tokens))
    said = forward_flops_per_token(model, variables["params"], tokens.shape[1])
    assert count_flops(model.apply, variables, tokens) == tokens.size * said


def test_on_eight_devices_is_on_one(
    model, params, tokens, scanned, logits_and_gradient, assert_close
):
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    together = logits_and_gradient(model, params, tokens, mesh=mesh)
    assert_close(together, scanned, 1e-10)


def test_refuses_an_unknown_remat_policy(fields, small_model, tokens):
    model = small_model(**fields, remat="ful")
    with pytest.raises(ValueError, match=r"unknown remat policy 'ful'.*'full'"):
        model.init(jax.random.key(0), tokens)
