"""What every mixer keeps whose state does not grow with the number of tokens.

Lengths are those of more than one chunk, and no multiple of one.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.parameters import logical_axes
from reslab.core.trees import unbox
from reslab.parallel.mesh import batch_sharding, make_mesh, tree_sharding, use_mesh

BATCH, LENGTH, WIDTH = 2, 70, 16
STARTS = (0, 3, 41, 64)  # Of documents: within chunks, and where one begins.


def shapes(name, length):
    module = registry.make("mixers", name)
    return jax.tree.map(jnp.shape, module.init_state(BATCH, length, WIDTH))


def is_recurrent(name):
    try:
        return shapes(name, 4) == shapes(name, 64)
    except ReslabError:
        return False  # It sees later tokens, and keeps no state.


RECURRENT = [name for name in registry.names("mixers") if is_recurrent(name)]
CHUNKED = [
    name
    for name in RECURRENT
    if "chunk" in {f.name for f in dataclasses.fields(registry.make("mixers", name))}
]

# The usual test run takes this one, the checks of a commit all of them.
USUAL = "kda"


def marked(names):
    return [
        pytest.param(name, marks=() if name == USUAL else pytest.mark.conformance)
        for name in names
    ]


def test_these_are_among_them():
    assert {"delta", "gated_delta", "kda"} <= set(CHUNKED) <= set(RECURRENT)


@pytest.fixture(params=marked(RECURRENT))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(2), (BATCH, LENGTH, WIDTH))


@pytest.fixture
def close(assert_close):
    return lambda one, other: assert_close(one, other, 2e-5)


def places(x, start=0):
    return jnp.broadcast_to(start + jnp.arange(x.shape[1]), x.shape[:2])


@pytest.fixture
def variables(name, x, randomized):
    module = registry.make("mixers", name)
    drawn = jax.eval_shape(module.init, jax.random.key(0), x, positions=places(x))
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(lambda a: 0.3 * rng.normal(size=a.shape), unbox(drawn))
    return jax.tree.map(jnp.float32, drawn)


def run(name, variables, x, start=0, state=None, **options):
    module = registry.make("mixers", name, **options.pop("fields", {}))
    y, _, state = module.apply(
        variables, x, positions=places(x, start), state=state, **options
    )
    return y, state


def empty(name, **context):
    return registry.make("mixers", name, **context).init_state(BATCH, LENGTH, WIDTH)


def test_each_prefix_is_the_whole_and_a_state_continues_anywhere(
    name, variables, x, close
):
    """Steps from an empty and from a prefilled state, and a second prefill."""

    @jax.jit
    def forms(variables, x):
        whole = run(name, variables, x)[0]

        def step(state, token):
            place, one = token
            y, state = run(name, variables, one[:, None], place, state)
            return state, y[:, 0]

        def steps(state, first):
            tokens = jnp.arange(first, LENGTH), jnp.swapaxes(x[:, first:], 0, 1)
            state, y = jax.lax.scan(step, state, tokens)
            return jnp.swapaxes(y, 0, 1), state

        begun, middle = run(name, variables, x[:, :37], state=empty(name))
        later, end = run(name, variables, x[:, 37:], 37, middle)
        return (
            (whole, end),
            (jnp.concatenate([begun, later], axis=1), end),
            steps(empty(name), 0),
            jax.tree.map(
                lambda a: jnp.concatenate([begun, a], axis=1),
                steps(middle, 37)[0],
            ),
        )

    wanted, *pairs, continued = forms(variables, x)
    for pair in pairs:
        close(pair, wanted)
    close(continued, wanted[0])


@pytest.mark.conformance
@pytest.mark.parametrize("chunk", [1, 8, 16, 128])
@pytest.mark.parametrize("name", CHUNKED)
def test_the_size_of_a_chunk_changes_nothing(name, chunk, variables, x, close):
    spec = f"{name}(chunk={chunk})"

    @jax.jit
    def both(variables, x):
        return [run(one, variables, x, state=empty(name)) for one in (spec, name)]

    close(*both(variables, x))


@pytest.mark.conformance
def test_documents_of_several_chunks_do_not_see_each_other(name, variables, x, close):
    ends = (*STARTS[1:], LENGTH)
    segments = np.searchsorted(STARTS, np.arange(LENGTH), side="right")
    segments = jnp.broadcast_to(jnp.asarray(segments, jnp.int32), (BATCH, LENGTH))
    starts = jnp.asarray(STARTS)[segments - 1]

    @jax.jit
    def forms(variables, x):
        module = registry.make("mixers", name)

        def packed(x):
            places_ = jnp.arange(LENGTH)[None] - starts
            return module.apply(variables, x, positions=places_, segments=segments)[0]

        alone = [
            run(name, variables, x[:, a:b])[0]
            for a, b in zip(STARTS, ends, strict=True)
        ]
        last = jax.grad(lambda x: jnp.sum(jnp.sin(packed(x)[:, STARTS[-1] :])))(x)
        return packed(x), jnp.concatenate(alone, axis=1), last

    packed, alone, slope = forms(variables, x)
    close(packed, alone)
    assert not np.any(slope[:, : STARTS[-1]])
    assert np.any(slope[:, STARTS[-1]])


@pytest.mark.conformance
def test_is_finite_in_bfloat16_over_8192_tokens(name, variables):
    x = jax.random.normal(jax.random.key(3), (1, 8192, WIDTH), jnp.bfloat16)

    @jax.jit
    def gradient(variables, x):
        def total(variables, x):
            y, _ = run(name, variables, x, fields={"dtype": jnp.bfloat16})
            return jnp.sum(jnp.sin(y.astype(jnp.float32))), y

        return jax.grad(total, argnums=(0, 1), has_aux=True)(variables, x)

    for leaf in jax.tree.leaves(gradient(variables, x)):
        assert np.all(np.isfinite(np.asarray(leaf, np.float32)))


MESHES = {
    "rows and heads": {"data": 2, "fsdp": 2, "tensor": 2},
    "tokens and heads": {"data": 1, "fsdp": 1, "sequence": 4, "tensor": 2},
}
# What they do to a state is no matrix; a device cannot know it before its turn.
SEQUENTIAL = {"gru", "lstm"}


@pytest.mark.parametrize("axes", MESHES)
def test_on_eight_devices_is_on_one(name, axes, variables, assert_close):
    """Devices that share a row pass states on, and gather no tokens."""
    x = jax.random.normal(jax.random.key(2), (4, 96, WIDTH))
    segments = jnp.where(jnp.arange(96) < 27, 1, 2)
    segments = jnp.broadcast_to(segments, (4, 96))

    def total(variables, x):
        y, _ = run(name, variables, x, segments=segments)
        return jnp.sum(jnp.sin(y)), y

    compute = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))
    wanted = compute(variables, x)
    mesh = make_mesh(MESHES[axes])
    is_divided = "sequence" in mesh.axis_names
    with use_mesh(mesh):
        module = registry.make("mixers", name)
        with logical_axes():
            boxed = jax.eval_shape(
                module.init, jax.random.key(0), x, positions=places(x)
            )
        shardings = tree_sharding(boxed, mesh)
        assert any("tensor" in str(s.spec) for s in jax.tree.leaves(shardings))
        tokens = batch_sharding(mesh)
        if is_divided:
            tokens = jax.sharding.NamedSharding(mesh, jax.P(None, "sequence"))
        placed = jax.device_put((variables, x), (shardings, tokens))
        compiled = compute.lower(*placed).compile()
        found = compiled(*placed)
    assert_close(found, wanted, 1e-4)
    if is_divided and name not in SEQUENTIAL:
        text = compiled.as_text()
        assert "collective-permute" in text
        # Documents of the tokens are few bytes, and constants here.
        assert not re.findall(r"= \(?f32\S* (?:all-gather|all-to-all)", text)
