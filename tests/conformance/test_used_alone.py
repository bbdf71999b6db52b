"""What every part keeps in code that knows nothing of reslab."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from reslab.core import registry
from reslab.core.model_state import MODEL_STATE
from reslab.core.parameters import logical_axes
from reslab.core.trees import is_box
from reslab.models.examples import CALLS, example
from reslab.models.lm import LanguageModel

WIDTH = 16
# Of each family, what the usual test run takes.
USUAL = {
    "norms": ("rms",),
    "ffns": ("swiglu",),
    "linears": ("dense",),
    "mixers": ("attention", "gated_delta"),
    "positions": ("learned",),
    "value_paths": ("value_residual",),
    "residuals": ("hyper", "attnres"),
    "placements": ("pre",),
    "blocks": ("standard",),
    "stacks": ("uniform",),
}
VARIANTS = [
    pytest.param(
        (family, name),
        id=f"{family}/{name}",
        marks=() if name in USUAL[family] else pytest.mark.conformance,
    )
    for family in CALLS
    for name in registry.names(family)
]


@pytest.fixture(params=VARIANTS)
def variant(request):
    return request.param


@pytest.fixture
def part(variant):
    return example(*variant, WIDTH)


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(1), (2, 16, WIDTH))


def arrays(tree):
    return [leaf for leaf in jax.tree.leaves(tree) if leaf.dtype.kind in "fV"]


def initialized(part, x):
    module, call = part
    return nn.init_with_output(call, module)(jax.random.key(0), x)


def test_parameters_are_plain_arrays(part, x):
    _, variables = jax.eval_shape(lambda: initialized(part, x))
    assert not any(map(is_box, jax.tree.leaves(variables, is_leaf=is_box)))


def test_works_in_nnx(part, x):
    module, call = part

    def made():
        bridged = nnx.bridge.ToNNX(module, rngs=nnx.Rngs(0))
        bridged = bridged.lazy_init(x, method=call)
        return nnx.state(bridged, nnx.Param), bridged(x, method=call)

    params, y = jax.eval_shape(made)
    expected, variables = jax.eval_shape(lambda: initialized(part, x))
    assert jax.tree.leaves(y) == jax.tree.leaves(expected)
    assert sorted(leaf.shape for leaf in jax.tree.leaves(params)) == sorted(
        leaf.shape for leaf in jax.tree.leaves(variables.get("params", {}))
    )


def test_works_in_a_plain_scan(variant, part, x):
    class Loop(nn.Module):
        @nn.compact
        def __call__(self, x):
            module, call = example(*variant, WIDTH)
            scan = nn.scan(
                lambda module, x, _: (x, call(module, x)),
                variable_axes={name: 0 for name in ("params", *MODEL_STATE)},
                split_rngs={"params": True},
                length=3,
            )
            return scan(module, x, None)

    (carry, ys), variables = jax.eval_shape(
        lambda: Loop().init_with_output(jax.random.key(0), x)
    )
    y, alone = jax.eval_shape(lambda: initialized(part, x))
    assert carry.shape == x.shape
    assert [leaf.shape for leaf in jax.tree.leaves(ys)] == [
        (3, *leaf.shape) for leaf in jax.tree.leaves(y)
    ]
    params = jax.tree.leaves(variables.get("params", {}))
    assert sorted(leaf.shape for leaf in params) == sorted(
        (3, *leaf.shape) for leaf in jax.tree.leaves(alone.get("params", {}))
    )


def two_devices():
    axis_types = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((2,), ("data",), axis_types, devices=jax.devices()[:2])


def test_works_in_shard_map_with_checks(part, x):
    module, call = part
    _, variables = jax.eval_shape(lambda: initialized(part, x))

    def total(variables, x):
        y = nn.apply(call, module)(variables, x)
        squares = [jnp.sum(jnp.square(leaf)) for leaf in arrays(y)]
        return jax.lax.psum(sum(squares), "data")

    def gradient(params, state, x):
        return jax.grad(lambda p, x: total({**p, **state}, x), (0, 1))(params, x)

    state = {key: variables[key] for key in variables if key != "params"}
    params = {key: variables[key] for key in variables if key == "params"}
    mapped = jax.shard_map(
        gradient,
        mesh=two_devices(),
        in_specs=(P(), P(), P("data")),
        out_specs=(P(), P("data")),
    )
    by_params, by_x = jax.eval_shape(mapped, params, state, x)
    assert by_x.shape == x.shape
    assert jax.tree.structure(by_params) == jax.tree.structure(params)


def rolled(residual):
    """The sum of a rolled model's losses over two devices, and its inputs."""
    fields = {"vocabulary_size": 24, "features": 16, "vocabulary_chunks": 4}
    model = LanguageModel(**fields, depth=2, residual=residual, is_unrolled=False)
    tokens = jax.random.randint(jax.random.key(2), (2, 8), 0, 24)

    def loss(params, tokens):
        return jnp.sum(model.apply(params, tokens, tokens, method="losses")[0])

    split = jax.shard_map(
        jax.grad(lambda *inputs: jax.lax.psum(loss(*inputs), "data")),
        mesh=two_devices(),
        in_specs=(P(), P("data")),
        out_specs=P(),
    )

    def init():
        with logical_axes(False):
            return jax.jit(model.init)(jax.random.key(0), tokens)

    return loss, split, init, tokens


@pytest.mark.parametrize("residual", registry.names("residuals"))
def test_residual_in_a_rolled_stack_in_shard_map(residual):
    _, split, init, tokens = rolled(residual)
    params = jax.eval_shape(init)
    assert jax.eval_shape(split, params, tokens) == params


@pytest.mark.conformance
@pytest.mark.parametrize(
    "residual", ["plain", pytest.param("attnres", marks=pytest.mark.conformance)]
)
def test_losses_in_shard_map_are_those_outside(residual):
    loss, split, init, tokens = rolled(residual)
    params = init()
    actual, expected = jax.jit(split)(params, tokens), jax.grad(loss)(params, tokens)
    for got, wanted in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_works_in_vmap(part, x):
    module, call = part
    y, variables = jax.eval_shape(lambda: initialized(part, x))
    ys = jax.eval_shape(
        jax.vmap(nn.apply(call, module), in_axes=(None, 0)),
        variables,
        jax.ShapeDtypeStruct((3, *x.shape), x.dtype),
    )
    assert [leaf.shape for leaf in jax.tree.leaves(ys)] == [
        (3, *leaf.shape) for leaf in jax.tree.leaves(y)
    ]


def test_computes_in_bfloat16(variant, x):
    part = example(*variant, WIDTH, dtype=jnp.bfloat16)
    y, variables = jax.eval_shape(lambda: initialized(part, x.astype(jnp.bfloat16)))
    # Streams that are undone are wider than what is read from them.
    wide = {jnp.dtype(jnp.float32)} if variant[1] == "reversible" else set()
    assert {leaf.dtype for leaf in arrays(y)} - wide <= {jnp.dtype(jnp.bfloat16)}
    params = jax.tree.leaves(variables.get("params", {}))
    assert {leaf.dtype for leaf in params} <= {jnp.dtype(jnp.float32)}


def test_models_and_a_context_attach_names():
    tokens = jnp.zeros((1, 4), jnp.int32)
    model = LanguageModel(vocabulary_size=8, features=16, depth=1)
    key = jax.random.key(0)
    init = jax.jit(lambda: model.init(key, tokens)["params"]["embedding"])
    assert jax.eval_shape(init).names == ("vocab", "embed")
    lazy = model.lazy_init(key, jax.ShapeDtypeStruct((1, 4), jnp.int32))
    assert lazy["params"]["embedding"].names == ("vocab", "embed")
    # A compiled initialization does not outlive the context.
    with logical_axes(False):
        assert jax.eval_shape(init).shape == (8, 16)
    with pytest.raises(RuntimeError), logical_axes():
        raise RuntimeError
    norm = registry.make("norms", "rms")
    init = jax.jit(norm.init)
    assert not is_box(init(key, jnp.ones((1, 4)))["params"]["gain"])
    with logical_axes():
        assert is_box(init(key, jnp.ones((1, 4)))["params"]["gain"])
