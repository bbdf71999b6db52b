"""What every stack keeps, over several designs of its layers."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core import registry
from reslab.core.randomness import DROPOUT
from reslab.core.trees import named_leaves, nested_leaves, unbox
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
# Where the defaults are too large for eight tokens, or leave little to share.
SPECS = {
    "newton": {"stack": "newton(iterations=2)", "depth": 4},
    "cart": {"stack": "cart(loops=2, heads=2)"},
    "act": {"stack": "act(loops=2)"},
    "ponder": {"stack": "ponder(loops=2, halting='palbert')"},
    "interleaved": {"stack": "interleaved(group=4,latents=3,local=1,heads=2)"},
    "mod": {"stack": "mod(capacity=0.5)", "depth": 4},
    "wide": {"stack": "wide(unique=2)", "depth": 4},
    "recursive": {"stack": "recursive(unique=2, lora_rank=2)", "depth": 4},
    "dr_llm": {"stack": "dr_llm(prompt=5, hidden=4)"},
    "first": {"stack": "first(prompt=5)"},
    "unified_skipping": {"stack": "unified_skipping(prompt=5)", "depth": 4},
}
# Layers that may be left out share nothing along depth.
NO_MEMORY = {"mixer": ("attention(heads=2)", "gated_delta(heads=2)")}
APART = {"dr_llm": NO_MEMORY, "first": NO_MEMORY, "unified_skipping": NO_MEMORY}
# Learn by other means than the gradient of the logits.
DECIDING = ("/router_", {"dr_llm", "first"})
CASES = [
    pytest.param((stack, design), id=f"{stack}-{design}", marks=marks)
    for stack in registry.names("stacks")
    for design, marks in zip(DESIGNS, ((), pytest.mark.conformance), strict=True)
]


@pytest.fixture(scope="module", params=CASES)
def fields(request):
    stack, design = request.param
    apart = APART.get(stack, {}) if DESIGNS[design] else {}
    return {"stack": stack, **SPECS.get(stack, {}), **DESIGNS[design], **apart}


@pytest.fixture(scope="module")
def is_deciding(fields):
    """Whether a parameter decides what is applied, and is not in the logits."""
    words, stacks = DECIDING
    is_routed = registry.parse(fields["stack"]).name in stacks
    return lambda name: is_routed and words in f"/{name}"


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


@pytest.mark.conformance
def test_starts_the_same_scanned_or_unrolled(fields, small_model, start, tokens):
    model = small_model(**fields, is_unrolled=True)
    unrolled = unbox(jax.jit(model.init)(jax.random.key(0), tokens)["params"])
    assert jax.tree.structure(unrolled) == jax.tree.structure(start)
    chex.assert_trees_all_equal(unrolled, start)


def test_every_layer_starts_with_kernels_of_its_own(start):
    kernels = {n: k for n, k in named_leaves(start).items() if n.endswith("/kernel")}
    # Factors of passes; the second starts at zero.
    kernels = {
        n: k for n, k in kernels.items() if "/pass_" not in n and "/segment_" in n
    }
    assert kernels
    for name, kernel in kernels.items():
        layers = np.asarray(kernel).reshape(kernel.shape[0], -1)
        likeness = np.corrcoef(layers) - np.eye(len(layers))
        assert np.max(np.abs(likeness)) < 0.5, name


@pytest.mark.conformance
def test_every_parameter_receives_a_gradient(
    scanned, is_deciding, assert_gradient_reaches_every_parameter
):
    _, gradient = scanned
    assert_gradient_reaches_every_parameter(gradient, lambda name, _: is_deciding(name))


@pytest.mark.conformance
def test_every_parameter_changes_the_output(
    model, params, tokens, is_deciding, assert_every_parameter_changes
):
    leaves = named_leaves(params)
    rest = {name: leaf for name, leaf in leaves.items() if not is_deciding(name)}

    def apply(rest):
        return model.apply({"params": nested_leaves({**leaves, **rest})}, tokens)

    assert_every_parameter_changes(apply, rest)


def test_whole_is_prefill_and_one_token_at_a_time(model, params, tokens, x64):
    """In float64, where what remains is a difference of meaning."""
    model = model.clone(dtype=jnp.float64, param_dtype=jnp.float64)
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
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
    np.testing.assert_allclose(
        jnp.concatenate(parts, axis=1), wanted, rtol=1e-9, atol=1e-9
    )


def test_no_token_changes_an_earlier_one(model, params, tokens):
    run = jax.jit(lambda tokens: model.apply({"params": params}, tokens))
    other = tokens.copy()
    other[:, 5] = (tokens[:, 5] + 1) % model.vocabulary_size
    change = np.abs(run(other) - run(tokens))
    assert np.max(change[:, :5]) <= 1e-5
    assert np.all(np.max(change[:, 5], axis=-1) > 1e-4)


@pytest.mark.parametrize("is_unrolled", [False, True])
def test_costs_what_it_says(fields, small_model, tokens, is_unrolled):
    # Told for a prompt.
    fields = {**fields, "stack": fields["stack"].replace("g(prompt=5)", "g(prompt=8)")}
    model = small_model(**fields, is_unrolled=is_unrolled)
    variables = unbox(jax.eval_shape(model.init, jax.random.key(0), tokens))
    said = forward_flops_per_token(model, variables["params"], tokens.shape[1])
    # Evaluated, the others compute what they do in training.
    is_training = fields["stack"].startswith("mod")
    rngs = {DROPOUT: jax.random.key(0)} if is_training else {}

    def run(variables, tokens):
        return model.apply(variables, tokens, rngs=rngs)

    assert count_flops(run, variables, tokens) == tokens.size * said


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
