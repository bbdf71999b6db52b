import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.core.trees import named_leaves, unbox
from reslab.models.lm import LanguageModel
from reslab.parallel.aot.program import without_cache
from reslab.parallel.mesh import batch_sharding, make_mesh, tree_sharding, use_mesh

TOKENS = np.random.default_rng(0).integers(0, 21, (4, 8), dtype=np.int32)
TARGETS = np.roll(TOKENS, -1, axis=1)


def make(**fields):
    defaults = {
        "vocabulary_size": 21,
        "features": 16,
        "depth": 2,
        "mixer": "attention(heads=2)",
        "ffn": "swiglu(hidden=32)",
        "max_length": 16,
    }
    return LanguageModel(**defaults | fields)


def start(model, tokens=TOKENS):
    return unbox(jax.jit(model.init)(jax.random.key(0), tokens)["params"])


def apply(model, params, *args, **keywords):
    def run(params, *args):
        return model.apply({"params": params}, *args, **keywords)

    return jax.jit(run)(params, *args)


@pytest.fixture(scope="module")
def params():
    return start(make())


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_logits_are_float32(params, dtype):
    logits = apply(make(dtype=dtype), params, TOKENS)
    assert (logits.shape, logits.dtype) == ((4, 8, 21), jnp.float32)
    assert np.all(np.isfinite(logits))


def test_computes_in_float64_where_asked_to(x64):
    model = make(dtype=jnp.float64, param_dtype=jnp.float64)
    params = start(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float64")}
    assert apply(model, params, TOKENS).dtype == jnp.float64


@pytest.mark.parametrize("vocabulary_chunks", [1, 3])
@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_losses_are_the_cross_entropy_of_the_logits(tie_embeddings, vocabulary_chunks):
    model = make(
        tie_embeddings=tie_embeddings,
        vocabulary_chunks=vocabulary_chunks,
        vocabulary_multiple=12,
    )
    params = start(model)
    assert params["embedding"].shape == (24, 16)
    assert ("head" in params) != tie_embeddings
    logits = np.asarray(apply(model, params, TOKENS), np.float64)
    assert logits.shape[-1] == 21
    wanted = np.log(np.sum(np.exp(logits), axis=-1))
    losses, normalizer = apply(model, params, TOKENS, TARGETS, method="losses")
    target = np.take_along_axis(logits, TARGETS[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(normalizer, wanted, atol=1e-5)
    np.testing.assert_allclose(losses, wanted - target, atol=1e-5)


def test_padding_of_the_vocabulary_learns_nothing():
    model = make(vocabulary_multiple=12)
    params = start(model)

    def loss(params):
        losses, _ = model.apply({"params": params}, TOKENS, TARGETS, method="losses")
        return jnp.mean(losses)

    gradient = jax.jit(jax.grad(loss))(params)
    np.testing.assert_array_equal(gradient["head"][:, 21:], 0.0)
    np.testing.assert_array_equal(gradient["embedding"][21:], 0.0)
    assert np.all(np.any(np.asarray(gradient["head"][:, :21]) != 0, axis=0))


def test_tied_head_is_the_transposed_embedding():
    model = make(tie_embeddings=True)
    params = start(model)
    features, _ = apply(model, params, TOKENS, method="hidden")
    wanted = np.asarray(features) @ np.asarray(params["embedding"]).T
    np.testing.assert_allclose(apply(model, params, TOKENS), wanted, atol=1e-5)


def test_starts_close_to_guessing_evenly():
    model = make(features=64)
    losses, _ = apply(model, start(model), TOKENS, TARGETS, method="losses")
    assert float(jnp.mean(losses)) == pytest.approx(np.log(21) + 0.5, abs=0.5)


@pytest.mark.parametrize(
    ("fields", "query", "output"),
    [
        ({}, 1 / 8, 1 / 8 / 4),
        ({"scales_output_by_depth": False}, 1 / 8, 1 / 8),
        ({"init_std": 0.02}, 0.02, 0.02 / 4),
    ],
    ids=str,
)
def test_output_projections_start_smaller_by_depth(fields, query, output):
    model = make(features=64, depth=8, ffn="gelu(hidden=64)", **fields)
    block = start(model)["layers"]["body"]["segment_0"]["block_0"]
    for part, name, wanted in (
        ("mixer", "query", query),
        ("ffn", "up", query),
        ("mixer", "output", output),
        ("ffn", "down", output),
    ):
        deviation = np.std(block[part][name]["kernel"])
        assert deviation == pytest.approx(wanted, rel=0.03)


@pytest.mark.parametrize("position", ["rope", "learned"])
def test_packed_documents_are_as_each_alone(position):
    model = make(position=position)
    params = start(model)
    segments = np.broadcast_to(np.arange(8) // 4, TOKENS.shape)
    positions = np.broadcast_to(np.arange(8) % 4, TOKENS.shape)

    def packed(params, tokens):
        return model.apply(
            {"params": params}, tokens, positions=positions, segments=segments
        )

    logits = jax.jit(packed)(params, TOKENS)
    alone = [apply(model, params, part) for part in (TOKENS[:, :4], TOKENS[:, 4:])]
    np.testing.assert_allclose(logits, np.concatenate(alone, axis=1), atol=1e-5)


def test_specs_are_tiled_over_depth():
    model = make(
        depth=5,
        mixer=("gated_delta(heads=2)", "attention(heads=2)"),
        norm=("rms", "layer"),
        placement=("pre", "pre", "post"),
    )
    shapes = unbox(jax.eval_shape(model.init, jax.random.key(0), TOKENS))
    blocks = shapes["params"]["layers"]["body"]["segment_0"]
    # A period of six is cut to the depth; every layer is a kind of its own.
    assert [f"block_{layer}" for layer in range(5)] == sorted(blocks)
    for layer in range(5):
        block = blocks[f"block_{layer}"]
        assert ("taps" in str(block["mixer"])) == (layer % 2 == 0)
        assert ("bias" in str(block["mixer_placement"])) == (layer % 2 == 1)
        assert ("stream_norm" in block["mixer_placement"]) == (layer % 3 == 2)


def test_final_norm_follows_the_last_placement(params):
    assert "final_norm" in params
    assert "final_norm" not in start(make(placement="post"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depth": 0}, "model.depth: expected at least 1; got 0"),
        ({"norm": "rmss"}, "unknown norms 'rmss'.*'rms'"),
        ({"residual": "hyper(stream=2)"}, "no argument 'stream'.*'streams'"),
        ({"mixer": "attention(heads=3)"}, "a divisor of the width"),
    ],
)
def test_mistakes_are_told_in_one_line(fields, message):
    with pytest.raises(ReslabError, match=message) as error:
        jax.eval_shape(make(**fields).init, jax.random.key(0), TOKENS)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def training():
    """A loss with its gradient, where it is taken, and what one device says."""
    model = make(vocabulary_size=22, position="learned")
    tokens = np.tile(TOKENS, (2, 1))
    params = start(model, tokens)

    def loss(params, tokens):
        targets = jnp.roll(tokens, -1, axis=1)
        losses, _ = model.apply({"params": params}, tokens, targets, method="losses")
        return jnp.mean(losses)

    step = jax.value_and_grad(loss)
    return model, step, params, tokens, jax.jit(step)(params, tokens)


@pytest.mark.conformance
@pytest.mark.parametrize(
    "shape",
    [{"data": 1, "fsdp": 8, "tensor": 1}, {"data": 2, "fsdp": 2, "tensor": 2}],
    ids=str,
)
def test_loss_on_eight_devices_is_that_on_one(training, shape):
    model, step, params, tokens, alone = training
    mesh = make_mesh(shape)
    with use_mesh(mesh):
        boxed = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
        placed = jax.device_put(params, tree_sharding(boxed, mesh))
        spread = jax.device_put(tokens, batch_sharding(mesh))
        together = jax.jit(step)(placed, spread)
    wanted = named_leaves(alone)
    for name, leaf in named_leaves(together).items():
        size = float(np.max(np.abs(wanted[name])))
        np.testing.assert_allclose(
            leaf, wanted[name], rtol=0, atol=1e-5 * size, err_msg=name
        )


def test_a_step_is_as_long_at_any_depth():
    def length(depth):
        model = make(depth=depth)
        shapes = unbox(jax.eval_shape(model.init, jax.random.key(0), TOKENS))

        def loss(variables):
            return jnp.mean(model.apply(variables, TOKENS, TARGETS, method="losses")[0])

        return len(str(jax.make_jaxpr(jax.grad(loss))(shapes)).splitlines())

    assert length(48) <= 1.01 * length(12)


@pytest.mark.conformance
@pytest.mark.optimized
def test_compiling_does_not_grow_with_depth():
    def seconds(depth):
        model = make(depth=depth)
        shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)

        def loss(variables):
            return jnp.mean(model.apply(variables, TOKENS, TARGETS, method="losses")[0])

        begin = time.process_time()
        jax.jit(jax.grad(loss)).lower(unbox(shapes)).compile()
        return time.process_time() - begin

    seconds(2)  # What is done once, such as imports.
    # The best of some, taken in turn: other programs only ever add time.
    with without_cache():
        pairs = [(seconds(12), seconds(48)) for _ in range(2)]
    shallow, deep = (min(column) for column in zip(*pairs, strict=True))
    assert deep < 1.5 * shallow


def test_the_final_norm_follows_the_placement_of_the_last_layer():
    def has_final_norm(placement, depth):
        model = LanguageModel(
            vocabulary_size=11, features=16, depth=depth, placement=placement
        )
        tokens = jnp.zeros((1, 2), jnp.int32)
        variables = jax.eval_shape(model.init, jax.random.key(0), tokens)
        return "final_norm" in variables["params"]

    assert has_final_norm(("pre", "post"), 3)
    assert not has_final_norm(("pre", "post"), 4)


def test_initial_scale_counts_every_pass_of_a_loop():
    def context(**parts):
        model = LanguageModel(vocabulary_size=11, features=16, depth=2, **parts)
        return model.make_stack(parent=None).context

    assert context().output_scale == 0.5
    assert context(stack="looped(loops=4)").output_scale == 0.25
    assert context(stack="looped(loops=4)").depth == 8
    assert context(scales_output_by_depth=False).output_scale == 1.0


def test_peri_is_sandwich_with_a_norm_of_the_embedding():
    peri = make(placement="peri")
    params = start(peri)
    same = make(placement="sandwich", post_embedding_norm="rms")
    np.testing.assert_array_equal(
        apply(same, params, TOKENS), apply(peri, params, TOKENS)
    )
    other = start(make(placement="peri", post_embedding_norm="layer"))
    assert "embedding_norm/bias" in named_leaves(other)


def test_an_embedding_of_any_scale_enters_at_the_same_size():
    model = make(post_embedding_norm="rms(epsilon=0.0)")
    params = start(model)
    larger = dict(params, embedding=64 * params["embedding"])
    np.testing.assert_allclose(
        apply(model, larger, TOKENS), apply(model, params, TOKENS), rtol=2e-6, atol=2e-6
    )


def test_a_head_of_scale_0_begins_with_equal_logits():
    model = make(head_scale=0.0)
    assert not np.any(apply(model, start(model), TOKENS))
    with pytest.raises(ReslabError, match="there is no other head"):
        start(make(head_scale=0.0, tie_embeddings=True))


@pytest.mark.parametrize("vocabulary_chunks", [1, 3])
def test_capped_logits_and_a_scaled_embedding(params, vocabulary_chunks):
    given = {"vocabulary_multiple": 8, "vocabulary_chunks": vocabulary_chunks}
    model = make(logit_softcap=0.5, embedding_scale=4.0, **given)
    params = start(model)
    plain = make(**given)
    scaled = {**params, "embedding": 4 * params["embedding"]}
    wanted = 0.5 * jnp.tanh(apply(plain, scaled, TOKENS) / 0.5)
    np.testing.assert_allclose(apply(model, params, TOKENS), wanted, atol=1e-6)

    def whole(params):
        logits = model.apply({"params": params}, TOKENS)
        log_normalizer = jax.nn.logsumexp(logits, axis=-1)
        target = jnp.take_along_axis(logits, TARGETS[..., None], axis=-1)[..., 0]
        return jnp.mean(log_normalizer - target)

    def chunked(params):
        nll, _ = model.apply({"params": params}, TOKENS, TARGETS, method="losses")
        return jnp.mean(nll)

    (one, by_one), (other, by_other) = (
        jax.jit(jax.value_and_grad(f))(params) for f in (whole, chunked)
    )
    np.testing.assert_allclose(one, other, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), by_one, by_other
    )
