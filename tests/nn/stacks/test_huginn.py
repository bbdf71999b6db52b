"""Recurrent depth against the authors' blocks; a random number of passes."""

import functools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.randomness import DROPOUT
from reslab.core.trees import count_parameters, named_leaves, nested_leaves, unbox
from reslab.nn.stacks import huginn
from reslab.nn.stacks._loops import until
from reslab.nn.stacks._repeating import Ends
from reslab.nn.stacks.huginn import HuginnStack, draw_passes
from reslab.train.generate import generate
from tests.nn.stacks.conftest import TOKENS, make, start

GOLDENS = pathlib.Path(__file__).parents[2] / "goldens"


def starting_from(latent, loops):
    """A stack whose loop starts from this state."""

    class Given(HuginnStack):
        def make_ends(self, positions):
            ends = super().make_ends(positions)
            return Ends(lambda stream: jnp.asarray(latent), ends.leave, ends.finish)

    return functools.wraps(Given)(functools.partial(Given, loops=loops))


def golden_parameters(file, kind):
    """Parameters, or their gradients, in the model's names."""
    size, heads, dim, hidden = 8, 2, 4, 12
    pairs = np.r_[0:dim:2, 1:dim:2]

    def layer(stage, index):
        at = f"dev_{kind}_{stage}.{index}."
        qkv = file[f"{at}attn.Wqkv.weight"].reshape(3, heads, dim, size)
        bias = file[f"{at}attn.qk_bias"].reshape(2, heads, dim)
        first, second = file[f"{at}mlp.fc.weight"].reshape(2, hidden, size)
        output = file[f"{at}attn.proj.weight"].T.reshape(heads, dim, size)
        found = {
            "mixer/value/kernel": np.moveaxis(qkv[2], -1, 0),
            "mixer/output/kernel": output,
            "ffn/gate/kernel": first.T,
            "ffn/up/kernel": second.T,
            "ffn/down/kernel": file[f"{at}mlp.proj.weight"].T,
            "mixer/value/bias": np.zeros((heads, dim), np.float32),
            "mixer/output/bias": np.zeros(size, np.float32),
        }
        for row, name in enumerate(("query", "key")):
            kernel = np.moveaxis(qkv[row], -1, 0)[..., pairs]
            found[f"mixer/{name}/kernel"] = kernel
            found[f"mixer/{name}/bias"] = bias[row][:, pairs]
        for number, name in enumerate(("mixer", "ffn")):
            for order, norm in enumerate(("input_norm", "stream_norm")):
                gain = file[f"{at}norm_{2 * number + order + 1}.weight"]
                found[f"{name}_placement/{norm}/gain"] = gain - (kind == "in")
        return found

    leaves = {
        "embedding": file[f"dev_{kind}_wte.weight"],
        "layers/injection_kernel": np.stack(
            np.split(file[f"dev_{kind}_adapter.weight"].T, 2)
        ),
        "layers/loop_norm/gain": file[f"dev_{kind}_ln_f.weight"] - (kind == "in"),
    }
    stages = ("prelude", 1), ("core", 2), ("coda", 1)
    for number, (stage, count) in enumerate(stages):
        layers = [layer(stage, index) for index in range(count)]
        for name in layers[0]:
            rows = np.stack([one[name] for one in layers])
            leaves[f"layers/body_{number}/segment_0/block_0/{name}"] = rows
    return nested_leaves(leaves)


def test_is_the_authors_model_forward_and_backward():
    with np.load(GOLDENS / "huginn.npz") as stored:
        file = dict(stored)

    model = make(
        starting_from(file["dev_in_s0"], 3),
        vocabulary_size=11,
        mixer="attention(heads=2, use_bias=True)",
        ffn="swiglu(hidden=12)",
        placement="sandwich(after='addition')",
        position="rope(base=50000.0)",
        embedding_scale=math.sqrt(8),
        tie_embeddings=True,
    )
    params = golden_parameters(file, "in")
    shapes = unbox(jax.eval_shape(model.init, jax.random.key(0), TOKENS))["params"]
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)

    def loss(params):
        logits = model.apply({"params": params}, file["dev_in_ids"].astype(np.int32))
        return jnp.sum(logits * file["dev_cot_logits"]), logits

    gradient, logits = jax.jit(jax.grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(logits, file["dev_out_logits"], atol=1e-5)
    wanted, gradient = (
        named_leaves(tree) for tree in (golden_parameters(file, "grad"), gradient)
    )
    for name, leaf in wanted.items():
        if "value/bias" in name or "output/bias" in name:
            continue  # The authors have none.
        largest = np.max(np.abs(leaf))
        np.testing.assert_allclose(
            gradient[name], leaf, atol=1e-4 * largest, err_msg=name
        )


@pytest.fixture
def passes(monkeypatch):
    """Sets the number of passes that training draws."""

    def set_to(count):
        drawn = jnp.asarray(count, jnp.int32)
        monkeypatch.setattr(huginn, "draw_passes", lambda key, mean: drawn)

    return set_to


def gradient(model, params, **options):
    def loss(params):
        logits = model.apply({"params": params}, TOKENS, **options)
        return jnp.sum(jnp.sin(logits)), logits

    return jax.jit(jax.grad(loss, has_aux=True))(params)


def assert_close(actual, expected):
    for name, leaf in named_leaves(expected).items():
        size = np.max(np.abs(leaf))
        np.testing.assert_allclose(
            named_leaves(actual)[name], leaf, atol=2e-5 * size, err_msg=name
        )


@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.conformance), 5])
def test_training_goes_back_through_the_last_passes_alone(passes, count):
    passes(count)
    spec = "huginn(loops={}, start_std=0.0, backward_loops=2)"
    model = make(spec.format(3))
    params = start(model)["params"]
    rngs = {DROPOUT: jax.random.key(5)}
    slopes, logits = gradient(model, params, rngs=rngs)
    # Evaluated, so many passes give the same; cut by hand, they learn the same.
    kept, before = min(count, 2), max(count - 2, 0)
    latent = np.zeros((2, 6, 8), np.float32)
    if before:
        latent = latent_after(make(spec.format(before)), params)
    other = make(starting_from(latent, kept))
    wanted, expected = gradient(other, params)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    whole = make(spec.format(count)).apply({"params": params}, TOKENS)
    np.testing.assert_allclose(logits, whole, atol=1e-5)
    assert_close(slopes, wanted)


def latent_after(model, params):
    """What the loop of a model returns."""
    found = []

    class Kept(HuginnStack):
        def make_ends(self, positions):
            ends = super().make_ends(positions)
            return Ends(ends.start, lambda s: found.append(s) or s, ends.finish)

    loops = registry.parse(model.stack).arguments["loops"]
    kept = functools.partial(Kept, loops=loops, start_std=0.0)
    model.clone(stack=functools.wraps(Kept)(kept)).apply({"params": params}, TOKENS)
    return found[-1]


def test_starts_differ_by_position_and_not_by_batch():
    model = make("huginn(loops=1, prelude=0, coda=0, injection='none', loop_norm='')")
    params = start(model)["params"]
    one = model.apply({"params": params}, TOKENS)
    other = model.apply({"params": params}, TOKENS[::-1])
    np.testing.assert_allclose(one[0], one[1], atol=1e-6)
    np.testing.assert_allclose(one, other, atol=1e-6)
    assert np.min(np.std(one[0], axis=0)) > 1e-3


def test_passes_are_drawn_around_their_mean():
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = jax.vmap(lambda key: draw_passes(key, 32))(keys)
    assert 32.0 < np.mean(drawn) < 34.0
    assert 28 < np.median(drawn) < 31
    assert np.min(drawn) >= 1
    assert np.max(drawn) <= 128


def test_neither_parameters_nor_program_grow_with_passes():
    rngs = {DROPOUT: jax.random.key(5)}

    def size(loops):
        model = make(f"huginn(loops={loops})")
        variables = unbox(jax.eval_shape(model.init, jax.random.key(0), TOKENS))
        step = jax.make_jaxpr(lambda v: model.apply(v, TOKENS, rngs=rngs))(variables)
        return count_parameters(variables), str(step).count(" = ")

    assert size(4) == size(64)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depth": 2}, r"model.depth: expected above 1 \+ 1"),
        ({"residual": "attnres"}, "a row for what each layer wrote"),
        ({"stack": "huginn(backward_loops=0)"}, "backward_loops: expected at least 1"),
        ({"stack": "huginn(exit='no')"}, "exit: expected 'none', 'latent', .*'no'"),
    ],
)
def test_refuses_in_one_line(fields, message):
    with pytest.raises(ReslabError, match=message) as caught:
        make(**{"stack": "huginn(loops=3)", **fields}).init(jax.random.key(0), TOKENS)
    assert "\n" not in str(caught.value)


def test_refuses_running_statistics_in_training():
    model = make("huginn(loops=3)", norm="progressive_rep_batch")
    variables = start(model)
    with pytest.raises(ReslabError, match="a norm with running statistics"):
        model.apply(
            variables,
            TOKENS,
            segments=np.ones_like(TOKENS),
            mutable=["batch_stats"],
            rngs={DROPOUT: jax.random.key(0)},
        )


def decoded(model, variables, state, token, position):
    x, state = model.apply(
        variables,
        token[:, None],
        positions=jnp.full((2, 1), position),
        state=state,
        method="hidden",
    )
    return model.apply(variables, x, method="logits"), state


@pytest.mark.conformance
@pytest.mark.parametrize(
    ("exit", "passes"),
    [
        ("latent", 1),
        pytest.param("kl", 2, marks=pytest.mark.conformance),
        pytest.param("entropy", 2, marks=pytest.mark.conformance),
    ],
)
def test_a_row_that_is_done_costs_no_more_passes(exit, passes):
    plain, options = make("huginn(loops=4)"), f"exit={exit!r}, threshold=1e6"
    early, short = make(f"huginn(loops=4, {options})"), make(f"huginn(loops={passes})")
    variables = start(plain)
    state = plain.init_state(2, 8)
    positions = np.broadcast_to(np.arange(6), (2, 6))
    _, state = plain.apply(
        variables, TOKENS, positions=positions, state=state, method="hidden"
    )
    before, core, after = state
    cut = before, jax.tree.map(lambda a: a[:passes], core), after
    one = jax.jit(decoded, static_argnums=0)
    logits, state = one(early, variables, state, TOKENS[:, 0], 6)
    wanted, other = one(short, variables, cut, TOKENS[:, 0], 6)
    np.testing.assert_allclose(logits, wanted, atol=1e-5)
    # Later tokens find the last pass of this one at any depth, and the prompt's own.
    for name in ("key", "value"):
        kept, last = state[1][0][0][name], other[1][0][0][name]
        np.testing.assert_allclose(kept[:passes], last, atol=1e-5)
        for deeper in kept[passes:]:
            np.testing.assert_array_equal(deeper[:, :, 6], kept[passes - 1][:, :, 6])
        np.testing.assert_array_equal(kept[:, :, :, :6], core[0][0][name][:, :, :, :6])
    np.testing.assert_array_equal(state[1][0][0]["length"], np.full((4, 2, 2), 7))


def test_rows_end_apart():
    """Row r halves until it is below a bound, after r + 1 passes."""

    def one_pass(stream, number, state):
        del number
        return stream / 2, {"key": state["key"].at[:, 0].set(stream[:, 0, 0])}

    def criterion(before, after, known):
        return after[:, 0, 0] < 1, known

    stream = jnp.asarray([1.5, 3.0, 6.0])[:, None, None]
    state = {"key": jnp.zeros((5, 3, 2))}
    after, state, taken = jax.jit(until.run, static_argnums=(0, 3, 4))(
        one_pass, stream, state, 5, criterion
    )
    np.testing.assert_allclose(after[:, 0, 0], [0.75] * 3)
    np.testing.assert_array_equal(taken, [1, 2, 3])
    kept = [[1.5, 0.75, 0.75], [3, 1.5, 0.75], [6, 3, 1.5]]
    for row, values in enumerate(kept):
        np.testing.assert_allclose(
            state["key"][:, row, 0], [*values, values[-1], values[-1]]
        )
    np.testing.assert_array_equal(state["key"][..., 1], 0)


@pytest.mark.conformance
def test_generation_can_end_early():
    model = make("huginn(loops=3)")
    variables = start(model)
    generate_ = functools.partial(generate, model, variables, TOKENS, 4, temperature=0)
    all_passes = generate_()
    np.testing.assert_array_equal(generate_(exit="latent", threshold=0.0), all_passes)
    # Through the head, and with prompts of different lengths.
    rows = [TOKENS[0, :3], TOKENS[1]]
    found = generate(model, variables, rows, 4, exit="kl", threshold=1.0)
    assert found.shape == (2, 4)


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        ({"stack": "looped"}, {}, "exit 'kl': expected a stack that can end early"),
        ({}, {"exit": "never"}, "exit: expected 'none', 'latent'"),
        ({}, {"threshold": -1.0}, "threshold: expected at least 0"),
        (
            {"mixer": "attention(heads=2, window=4)"},
            {"exit": "latent"},
            "expected mixers with a cache of every token; got Attention",
        ),
    ],
)
def test_refuses_to_end_early(fields, options, message):
    model = make(**{"stack": "huginn", **fields})
    with pytest.raises(ReslabError, match=message):
        generate(model, start(model), TOKENS, 2, **{"exit": "kl", **options})
