"""What the suites share: small models, parameters off their start, comparisons."""

import pathlib
import subprocess
import zlib

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from reslab.core.precision import statistics_dtype
from reslab.core.trees import map_named, named_leaves, unbox
from reslab.models.lm import LanguageModel
from reslab.parallel.mesh import batch_sharding, make_mesh, tree_sharding, use_mesh

# These cost most to compile. `pytest` leaves them out; the checks of a commit take
# every one of them, for every variant at its defaults: `pytest -m conformance`.
COSTLY = {
    "test_gradient_is_that_of_finite_differences",
    "test_is_finite_in_bfloat16",
    "test_on_eight_devices_is_on_one",
    "test_recomputing_changes_nothing",
    "test_scanned_is_unrolled",
    "test_starts_as_plain_where_it_says_so",
    "test_identity_path_stays_bounded_through_64_sublayers",
    "test_whole_is_prefill_and_one_token_at_a_time",
}
# A commit takes one in so many of the exhaustive tests here: switches, combinations.
ROTATION = 16


def pytest_collection_modifyitems(config, items):
    """Marks costly tests, and the exhaustive ones that a commit takes, `conformance`.

    Those are the ones of variants that changed, and a share of the others that the
    commit chooses.
    """
    here = pathlib.Path(__file__).parent
    commit, changed = config.getoption("--rotate"), _changed(config)
    for item in items:
        if item.path.parent != here:
            continue
        is_exhaustive = item.get_closest_marker("exhaustive") is not None
        place = f"{commit} {item.path.name}::{item.name}"
        is_taken = zlib.crc32(place.encode()) % ROTATION == 0
        if is_exhaustive and commit and (is_taken or _variants(item) & changed):
            _unmark(item, "exhaustive")
            item.add_marker("conformance")
        elif not is_exhaustive and getattr(item, "originalname", None) in COSTLY:
            item.add_marker("conformance")


def _changed(config):
    """Names of variants whose files the commits of the last day touched."""
    commit = config.getoption("--rotate")
    if not commit:
        return set()

    def git(*arguments):
        done = subprocess.run(
            ["git", *arguments], cwd=config.rootpath, capture_output=True, text=True
        )
        return done.stdout.split() if done.returncode == 0 else []

    (made,) = git("log", "-1", "--format=%ct", commit) or (0,)
    since = f"--since={int(made) - 24 * 60 * 60}"
    names = git("log", since, "--format=", "--name-only", commit, "--", "reslab")
    return {pathlib.PurePath(name).stem for name in names if name.endswith(".py")}


def _variants(item):
    """The names in the parameters of a test."""
    values = getattr(item, "callspec", None)
    flat, waiting = set(), list(values.params.values()) if values else []
    while waiting:
        value = waiting.pop()
        if isinstance(value, tuple | list):
            waiting += value
        elif isinstance(value, str):
            flat.add(value.partition("(")[0])
    return flat


def _unmark(item, name):
    for node in item.listchain():
        node.own_markers[:] = [m for m in node.own_markers if m.name != name]


MESHES = {
    "fsdp=8": {"data": 1, "fsdp": 8, "tensor": 1},
    "data=2,fsdp=2,tensor=2": {"data": 2, "fsdp": 2, "tensor": 2},
}


@pytest.fixture(params=MESHES)
def mesh(request):
    """Eight fake devices, arranged in each way in turn."""
    return make_mesh(MESHES[request.param])


@pytest.fixture(scope="session")
def randomized():
    """Moves every parameter off its initial value, where zeros would hide it."""

    def move(params, scale=0.2):
        rng = np.random.default_rng(7)

        def moved(leaf):
            noise = scale * rng.standard_normal(leaf.shape)
            return np.asarray(leaf + noise, leaf.dtype)

        return jax.tree.map(moved, jax.tree.map(np.asarray, unbox(params)))

    return move


@pytest.fixture(scope="session")
def assert_close():
    """Compares trees; the tolerance is relative to the largest entry of a leaf."""

    def compare(actual, expected, tolerance):
        assert jax.tree.structure(actual) == jax.tree.structure(expected)
        actual, expected = named_leaves(actual), named_leaves(expected)
        for name, wanted in expected.items():
            wanted, got = (np.asarray(a, np.float64) for a in (wanted, actual[name]))
            size = float(np.max(np.abs(wanted), initial=0.0))
            np.testing.assert_allclose(
                got, wanted, rtol=0, atol=tolerance * size, err_msg=name
            )

    return compare


@pytest.fixture(scope="session")
def assert_gradient_reaches_every_parameter():
    """Checks that each parameter receives a gradient.

    A parameter that a variant calls idle in some layer must receive none there.
    """

    def check(gradient, is_idle=lambda name, layer: False):
        for name, slope in named_leaves(gradient).items():
            # Layers are stacked on axis 0; none of them may be left out.
            rows = np.asarray(slope if "/segment_" in name else slope[None])
            for layer, row in enumerate(rows):
                # Passes over a shared layer are on axis 0 of its row.
                passes = row if "/pass_" in name else row[None]
                is_used = all(np.any(one != 0) for one in passes)
                wanted = not is_idle(name, layer)
                assert is_used == wanted, f"{name}, layer {layer}: {is_used}"

    return check


@pytest.fixture(scope="session")
def assert_every_parameter_changes():
    """Checks that the output depends on each parameter."""

    def check(function, params):
        evaluate = jax.jit(function)
        before = np.asarray(evaluate(params))
        leaves, structure = jax.tree.flatten(params)
        for index, name in enumerate(named_leaves(params)):
            moved = list(leaves)
            moved[index] = np.asarray(leaves[index] * 1.25 + 0.25, leaves[index].dtype)
            after = np.asarray(evaluate(structure.unflatten(moved)))
            assert np.any(after != before), f"{name} changes nothing"

    return check


@pytest.fixture(scope="session")
def assert_uses_every_parameter(
    assert_gradient_reaches_every_parameter, assert_every_parameter_changes
):
    """Checks that each parameter receives a gradient and changes the output."""

    def check(function, params):
        def weighted(params):
            y = function(params)
            return jnp.sum(_weights(y.shape, y.dtype) * y)

        assert_gradient_reaches_every_parameter(jax.jit(jax.grad(weighted))(params))
        assert_every_parameter_changes(function, params)

    return check


@pytest.fixture(scope="session")
def assert_gradient_is_slope():
    """Compares the gradient of a function with finite differences, in float64."""

    def check(function, *arguments):
        flat, restore = jax.flatten_util.ravel_pytree(arguments)
        assert flat.dtype == jnp.float64
        check_grads(
            jax.jit(lambda flat: function(*restore(flat))),
            (np.asarray(flat),),
            order=1,
            modes=["rev"],
            # Small, for the curved start of a recurrence, where a norm divides what was
            # hardly read; float64 affords it.
            eps=1e-6,
            rtol=1e-6,
            atol=1e-6,
        )

    return check


@pytest.fixture(scope="session")
def small_model():
    """A language model with small defaults, any field of which may be given."""

    def make(**fields):
        defaults = {
            "vocabulary_size": 24,
            "features": 16,
            "depth": 3,
            "mixer": "attention(heads=2)",
            "ffn": "swiglu(hidden=32)",
            "max_length": 16,
        }
        return LanguageModel(**defaults | fields)

    return make


@pytest.fixture(scope="session")
def drawn():
    """Draws a model's parameters, and starts its statistics, without compiling."""

    def draw(model, tokens, scale=0.2):
        rng = np.random.default_rng(7)
        shapes = unbox(jax.eval_shape(model.init, jax.random.key(0), tokens))
        params = jax.tree.map(
            lambda leaf: np.asarray(
                scale * rng.standard_normal(leaf.shape), leaf.dtype
            ),
            shapes.pop("params"),
        )
        ones = ("variance", "mean_square")
        state = map_named(
            lambda name, leaf: np.full(
                leaf.shape, name.split("/")[-1] in ones, leaf.dtype
            ),
            shapes,
        )
        return {"params": params, **state}

    return draw


@pytest.fixture(scope="session")
def tokens():
    """Eight sequences of eight tokens."""
    return np.random.default_rng(3).integers(0, 24, (8, 8), dtype=np.int32)


@pytest.fixture(scope="session")
def logits_and_gradient():
    """Logits and the gradient of a random weighting of them, compiled.

    In float64 unless told otherwise: two orders of the same operations then agree
    to many digits, and what remains is a difference of meaning.
    """

    def run(model, params, tokens, *, mesh=None, dtype=jnp.float64):
        with jax.enable_x64(dtype == jnp.float64):
            stored = statistics_dtype(dtype)
            model = model.clone(dtype=dtype, param_dtype=stored)
            params = jax.tree.map(lambda a: np.asarray(a, stored), params)
            weights = _weights((*tokens.shape, model.vocabulary_size), stored)

            def weighted(params, tokens):
                logits = model.apply({"params": params}, tokens)
                return jnp.sum(weights * logits), logits

            compiled = jax.jit(jax.grad(weighted, has_aux=True))
            if mesh is None:
                gradient, logits = compiled(params, tokens)
                return logits, gradient
            with use_mesh(mesh):
                boxed = jax.eval_shape(model.init, jax.random.key(0), tokens)
                shardings = tree_sharding(boxed["params"], mesh)
                gradient, logits = compiled(
                    jax.device_put(params, shardings),
                    jax.device_put(tokens, batch_sharding(mesh)),
                )
            assert len(logits.sharding.device_set) == 8
            return logits, gradient

    return run


def _weights(shape, dtype=np.float32):
    return np.random.default_rng(5).standard_normal(shape).astype(dtype)
