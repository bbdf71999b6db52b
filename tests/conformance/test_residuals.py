"""What every residual keeps: alone, and in a small language model."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core import registry
from reslab.core.trees import named_leaves, unbox
from reslab.parallel.mesh import make_mesh

OPTIONS = (
    "attnres(block=3)",
    "delta_attnres(gate='alpha', block=2, use_null=True)",
    "ddl(values=2, form='sigmoid')",
    "hyper(streams=2, is_dynamic=True)",
    "mhc(streams=2, iterations=2, weight_epsilon=1e-6, collapse='weighted')",
)
# A usual run leaves them out.
MORE_OPTIONS = (
    "attnres(window=2, use_null=True)",
    "attnres(source='cumulative')",
    "attnres(source='cumulative', block_layers=1)",
    "all_layers(last_bias=20.0)",
    "depth_window(window=2, heads=2)",
    "delta_attnres(gate='vector')",
    "delta_attnres(gate='scalar', block_layers=1, source='cumulative')",
    "delta_attnres(block=2, is_as_released=True)",
    "delta_attnres(use_value_read=True, is_as_released=True)",
    "attnres(use_value_read=True, block=2)",
    "ddl(values=2, form='affine', taps=2)",
    "dca(version=1)",
    "dca(version=2, last=2)",
    "denseformer(dilation=2, period=2)",
    "elc_bert(form='normalized')",
    "elc_bert(form='weighted_output')",
)
NAMES = (
    *registry.names("residuals"),
    *OPTIONS,
    *(pytest.param(spec, marks=pytest.mark.exhaustive) for spec in MORE_OPTIONS),
)
# They do not start as plain, but as a multiple of it.
PLAIN_BUT_FOR_A_FACTOR = ("delta_attnres(gate='vector')",)
SUBLAYERS = 64


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def residual(name):
    return registry.make("residuals", name, depth=SUBLAYERS)


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(2), (2, 4, 16))


@pytest.fixture(scope="module")
def model(name, small_model):
    return small_model(residual=name)


@pytest.fixture(scope="module")
def params(model, tokens, drawn):
    return drawn(model, tokens)["params"]


@pytest.fixture(scope="module")
def scanned(model, params, tokens, logits_and_gradient):
    return logits_and_gradient(model, params, tokens)


def narrowed(residual, stream):
    """The features of a stream; the end may have parameters, which start here."""
    key = jax.random.key(0)
    return residual.init_with_output(key, stream, method="narrow")[0]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_stream_keeps_its_structure_shape_and_dtype(residual, x, dtype):
    def widen(x):
        return residual.apply({}, x, method="widen")

    def sublayer(x):
        key = jax.random.key(0)
        return residual.init_with_output(key, widen(x), jnp.tanh, site=0)[0]

    def narrow(x):
        return narrowed(residual, widen(x))

    x = x.astype(dtype)
    stream = jax.eval_shape(widen, x)
    assert jax.eval_shape(sublayer, x) == stream
    assert jax.eval_shape(narrow, x) == jax.ShapeDtypeStruct(x.shape, dtype)
    for leaf in jax.tree.leaves(stream):
        assert leaf.shape[-3:] == x.shape


def test_calls_the_branch_once_on_features(residual, x):
    calls = []

    def branch(h):
        calls.append((h.shape, h.dtype))
        return h

    x = x.astype(jnp.bfloat16)
    stream = residual.apply({}, x, method="widen")
    residual.init(jax.random.key(0), stream, branch, site=0)
    assert calls == [(x.shape, x.dtype)]


def test_identity_path_stays_bounded_through_64_sublayers(residual, x):
    # An average of sublayers that add nothing is nothing; of identities, itself. Those
    # of a block are added up.
    adds = getattr(residual, "keeps_identity", True)
    share = 0 if adds else 1 / (getattr(residual, "block", 0) or 1)

    def branch(h):
        return share * h

    def sublayer(stream, site):
        key = jax.random.fold_in(jax.random.key(0), site)
        new, _ = residual.init_with_output(key, stream, branch, site=site)
        return new, None

    def through(x, sublayers):
        stream = residual.apply({}, x, method="widen")
        stream, _ = jax.lax.scan(sublayer, stream, jnp.arange(sublayers))
        return narrowed(residual, stream)

    def size(a):
        return float(jnp.sqrt(jnp.mean(jnp.square(a))))

    # The end of a history reads what the last sublayer wrote, if there is one.
    is_widened = adds and not getattr(residual, "is_history", False)

    def start(x):
        return through(x, 0) if is_widened else x

    def end(x):
        return through(x, SUBLAYERS)

    # A plain sum would not see what takes the mean off.
    weights = jax.random.normal(jax.random.key(3), x.shape)

    def gradient(f):
        return jax.grad(lambda x: jnp.sum(weights * f(x)))

    for derived in (lambda f: f, gradient):
        ratio = size(derived(end)(x)) / size(derived(start)(x))
        assert 1 / 8 < ratio < 8


def test_scanned_is_unrolled(
    name, small_model, params, tokens, scanned, logits_and_gradient, assert_close
):
    model = small_model(residual=name, is_unrolled=True)
    assert_close(logits_and_gradient(model, params, tokens), scanned, 1e-10)


def test_recomputing_changes_nothing(
    name, small_model, params, tokens, scanned, logits_and_gradient, assert_close
):
    # The other policies, and other meshes, are tested with every stack.
    model = small_model(residual=name, remat="full")
    assert_close(logits_and_gradient(model, params, tokens), scanned, 1e-10)


@pytest.mark.conformance
def test_every_parameter_receives_a_gradient(
    model, scanned, assert_gradient_reaches_every_parameter
):
    _, gradient = scanned
    ends = registry.make("residuals", model.residual, depth=model.depth, sublayers=2)

    def is_idle(name, layer):
        found = re.search(r"/(mixer|ffn)_residual/(.*)", name)
        if not found or not hasattr(ends, "is_idle"):
            return False
        return ends.is_idle(found[2], 2 * layer + (found[1] == "ffn"))

    assert_gradient_reaches_every_parameter(gradient, is_idle)


@pytest.mark.conformance
def test_every_parameter_changes_the_output(
    model, params, tokens, assert_every_parameter_changes
):
    assert_every_parameter_changes(lambda p: model.apply({"params": p}, tokens), params)


def test_starts_as_plain_where_it_says_so(name, small_model, tokens):
    ends = registry.make("residuals", name, depth=3, sublayers=2)
    declared = ends.reduces_to_plain_at_init
    # To a norm that divides by a size a mean of all sources is their sum.
    norm = "dyt" if name in PLAIN_BUT_FOR_A_FACTOR else "rms"
    model, plain = (small_model(residual=n, norm=norm) for n in (name, "plain"))
    start = unbox(jax.jit(model.init)(jax.random.key(0), tokens)["params"])
    branches = unbox(jax.jit(plain.init)(jax.random.key(1), tokens)["params"])
    given, own = named_leaves(branches), named_leaves(start)
    assert set(given) <= set(own)
    leaves = [given.get(name, leaf) for name, leaf in own.items()]
    shared = jax.tree.unflatten(jax.tree.structure(start), leaves)
    wanted = np.asarray(jax.jit(plain.apply)({"params": branches}, tokens))
    logits = np.asarray(jax.jit(model.apply)({"params": shared}, tokens))
    is_plain = np.max(np.abs(logits - wanted)) <= 1e-5 * np.max(np.abs(wanted))
    assert is_plain == declared


def test_is_finite_in_bfloat16(name, small_model, params, tokens, logits_and_gradient):
    model = small_model(residual=name)
    results = logits_and_gradient(model, params, tokens, dtype=jnp.bfloat16)
    for leaf in jax.tree.leaves(results):
        assert leaf.dtype == jnp.float32
        assert np.all(np.isfinite(np.asarray(leaf)))


def test_on_eight_devices_is_on_one(
    model, params, tokens, scanned, logits_and_gradient, assert_close
):
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    together = logits_and_gradient(model, params, tokens, mesh=mesh)
    assert_close(together, scanned, 1e-10)


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
        y, state = advance(tokens[:, part], positions[:, part], state)
        parts.append(y)
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), wanted, atol=2e-5)


def test_no_token_changes_an_earlier_one(model, params, tokens):
    run = jax.jit(lambda tokens: model.apply({"params": params}, tokens))
    other = tokens.copy()
    other[:, 5] = (tokens[:, 5] + 1) % model.vocabulary_size
    change = np.abs(run(other) - run(tokens))
    assert np.max(change[:, :5]) <= 1e-5
    assert np.all(np.max(change[:, 5], axis=-1) > 1e-4)
