"""Attention to a layer's own output: tiles against a scan over tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.ops.recurrent_attention import backward, tiled
from reslab.ops.recurrent_attention.api import recurrent_attention
from reslab.ops.recurrent_attention.layer import Layer
from reslab.ops.recurrent_attention.schedule import conquer

HEADS, SIZE, WIDTH = 2, 4, 8
SLOPES = np.array([0.1, 0.02])


def heads(x):
    return x.reshape(*x.shape[:-1], HEADS, SIZE)


def read(params, aux, x, places):
    return (
        heads(x @ params["q"]),
        heads(jnp.tanh(x @ params["k"])),
        heads(x @ params["v"]),
    )


def write(params, aux, x, attended, places):
    y = x + attended.reshape(x.shape) @ params["o"]
    return y + jnp.tanh(y @ params["w"])


def pair(params, aux, y, places):
    return read(params, aux, y, places)[1:]


LAYER = Layer(read, write, pair)


def inputs(length, dtype="float64"):
    draw = np.random.default_rng(0)
    params = {
        k: jnp.asarray(0.4 * draw.normal(size=(WIDTH, WIDTH)), dtype) for k in "qkvow"
    }
    x, cotangent = (
        jnp.asarray(draw.normal(size=(2, length, WIDTH)), dtype) for _ in range(2)
    )
    return params, x, cotangent


def apply(layer, params, x, **keywords):
    places = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
    slopes = jnp.asarray(SLOPES, x.dtype)
    return recurrent_attention(
        layer, params, {}, x, places=places, scale=0.5, slopes=slopes, **keywords
    )


def results(params, x, cotangent, **keywords):
    run = jax.jit(lambda params, x: apply(LAYER, params, x, **keywords))
    y, pull = jax.vjp(run, params, x)
    return y, pull(cotangent)


@pytest.mark.conformance
@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize(("length", "size"), [(1, 4), (7, 1), (13, 2), (29, 4)])
def test_tiles_are_the_naive_scan(length, size, is_packed, x64, monkeypatch):
    """At lengths that are no powers of two, forward and backward."""
    for module in (tiled, backward):
        monkeypatch.setattr(module, "block_sizes", lambda count: (5, 6))
    given, segments = inputs(length), None
    if is_packed:
        segments = jnp.asarray(
            np.sort(np.random.default_rng(1).integers(1, 4, (2, length)))
        )
    found = results(*given, segments=segments, size=size)
    wanted = results(*given, segments=segments, implementation="naive")
    for a, b in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


@pytest.mark.conformance
def test_tiles_are_the_naive_scan_in_float32():
    given = inputs(100, "float32")
    found, wanted = (
        results(*given, size=16, implementation=form) for form in ("tiles", "naive")
    )
    for a, b in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        scale = float(jnp.max(jnp.abs(b)))
        np.testing.assert_allclose(a, b, atol=1e-5 * scale)


@pytest.mark.parametrize("implementation", ["tiles", "naive"])
def test_with_the_pair_of_the_input_it_is_attention(implementation, x64):
    """The layer hands its input on beside its output, and takes the pair from it."""
    params, x, cotangent = inputs(13)
    layer = Layer(
        lambda params, aux, x, places: read(params, aux, x["out"], places),
        lambda params, aux, x, a, places: {
            "out": write(params, aux, x["out"], a, places),
            "in": x["out"],
        },
        lambda params, aux, y, places: pair(params, aux, y["in"], places),
    )

    def run(params, x):
        stream = {"out": x, "in": x}
        places = jnp.broadcast_to(jnp.arange(13), (2, 13))
        return recurrent_attention(
            layer,
            params,
            {},
            stream,
            places=places,
            scale=0.5,
            slopes=jnp.asarray(SLOPES),
            size=4,
            implementation=implementation,
        )["out"]

    def ordinary(params, x):
        query, key, value = (jnp.swapaxes(a, 1, 2) for a in read(params, {}, x, None))
        scores = 0.5 * jnp.einsum("bhnd,bhmd->bhnm", query, key)
        apart = jnp.arange(13.0)[None] - jnp.arange(13.0)[:, None]
        scores = scores + jnp.asarray(SLOPES)[None, :, None, None] * apart[None, None]
        weights = jax.nn.softmax(jnp.where(apart[None, None] > 0, -jnp.inf, scores), -1)
        attended = jnp.swapaxes(jnp.einsum("bhnm,bhmd->bhnd", weights, value), 1, 2)
        return write(params, {}, x, attended, None)

    (y, pull), (z, other) = (jax.vjp(jax.jit(f), params, x) for f in (run, ordinary))
    np.testing.assert_allclose(y, z, atol=1e-12)
    for a, b in zip(
        *(jax.tree.leaves(p(cotangent)) for p in (pull, other)), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-12)


@pytest.mark.conformance
@pytest.mark.parametrize("is_backward", [False, True])
def test_every_pair_of_tokens_is_in_one_tile(is_backward):
    for leaves in range(1, 12):
        size, length = 2, 2 * leaves
        # What each token, a row, has met.
        met = np.zeros((length, length), np.int32)
        one = jnp.eye(length, dtype=jnp.int32)

        def leaf(given, state):
            inside = jnp.tril(jnp.ones((2, 2), jnp.int32))
            return state + (inside.T if is_backward else inside) @ given

        def tile(given, state, before, done):
            return state + jnp.sum(before, axis=0, keepdims=True), done

        found = conquer(
            one, jnp.asarray(met), size, leaf, tile, is_backward=is_backward
        )
        wanted = np.tril(np.ones((length, length)))
        np.testing.assert_array_equal(found, wanted.T if is_backward else wanted)


def moved(jaxpr):
    """Numbers that the loops of a program are given, as often as they turn."""
    total = 0
    for one in jaxpr.eqns:
        if one.primitive.name == "scan":
            body = one.params["jaxpr"].jaxpr
            given = sum(variable.aval.size for variable in body.invars)
            total += one.params["length"] * (given + moved(body))
        elif one.primitive.name == "cond":
            total += max(moved(branch.jaxpr) for branch in one.params["branches"])
        else:
            for inner in one.params.values():
                total += moved(inner.jaxpr) if hasattr(inner, "jaxpr") else 0
    return total


@pytest.mark.parametrize("is_gradient", [False, True])
def test_tiles_are_given_length_times_its_logarithm(is_gradient, monkeypatch):
    """Per token, each doubling adds as much; with blocks of scores as large as tiles.

    The scan over tokens is given all keys for each of them: each adds twice as much.
    """
    for module in (tiled, backward):
        monkeypatch.setattr(module, "block_sizes", lambda count: (1024, 1024))

    def of_token(length, form):
        def run(params, x):
            return jnp.sum(apply(LAYER, params, x, size=4, implementation=form))

        run = jax.grad(run) if is_gradient else run
        return moved(jax.make_jaxpr(run)(*inputs(length, "float32")[:2])) / length

    for form, growth in {"tiles": (0.9, 1.2), "naive": (1.9, 2.1)}.items():
        found = [of_token(length, form) for length in (32, 64, 128)]
        one, other = np.diff(found)
        assert growth[0] < other / one < growth[1]


def test_the_gradient_keeps_input_and_output_alone():
    params, x, _ = inputs(64, "float32")
    _, pull = jax.vjp(lambda params, x: apply(LAYER, params, x, size=16), params, x)
    kept = sum(
        a.size for a in jax.tree.leaves(pull) if jnp.issubdtype(a.dtype, jnp.floating)
    )
    assert kept == 2 * x.size + sum(a.size for a in params.values()) + SLOPES.size


def test_an_unknown_form_is_one_line():
    params, x, _ = inputs(3, "float32")
    with pytest.raises(ReslabError, match="implementation 'tile'"):
        apply(LAYER, params, x, implementation="tile")
