"""What loops carry, and what they refuse to carry by name."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.core.freezing import freezing_layers
from reslab.core.losses import LOSSES, add_loss, total_loss
from reslab.core.model_state import BATCH_STATS
from reslab.core.randomness import DROPOUT
from reslab.core.routes import Route, routing
from reslab.core.trees import named_leaves, nested_leaves, unbox
from reslab.models.cost import forward_flops_per_token
from reslab.models.lm import LanguageModel
from reslab.nn.ffns.gelu import build as Gelu
from reslab.observe.flops import count_flops

TOKENS = np.random.default_rng(3).integers(0, 24, (2, 6), dtype=np.int32)


class Costly(Gelu):
    """A feed-forward layer that adds its mean square to the loss."""

    @nn.compact
    def __call__(self, x):
        y = super().__call__(x)
        add_loss(self, "size", jnp.mean(jnp.square(y)))
        return y


def make(**fields):
    defaults = {"features": 8, "depth": 4, "ffn": "gelu(hidden=8)"}
    defaults |= {"mixer": "attention(heads=2)", "max_length": 8}
    wide = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    return LanguageModel(vocabulary_size=24, **wide | defaults | fields)


def variables_of(model):
    shapes = unbox(jax.eval_shape(model.init, jax.random.key(0), TOKENS))
    rng = np.random.default_rng(7)
    params = jax.tree.map(
        lambda s: (0.3 * rng.standard_normal(s.shape)).astype(s.dtype), shapes["params"]
    )
    rest = {
        name: jax.tree.map(lambda s: np.ones(s.shape, s.dtype), tree)
        for name, tree in shapes.items()
        if name == BATCH_STATS
    }
    return {"params": params, **rest}


def gradient(model, variables, *, frozen=0, rngs=None):
    def loss(params):
        with freezing_layers(frozen):
            logits, written = model.apply(
                {**variables, "params": params},
                TOKENS,
                segments=np.ones_like(TOKENS),
                mutable=[LOSSES, BATCH_STATS],
                rngs=rngs,
            )
        return jnp.sum(jnp.sin(logits)) + total_loss(written), written

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])


CARRIED = {
    "losses": {"ffn": Costly},
    "running statistics": {"norm": "progressive_rep_batch"},
    "random numbers": {"dropout": 0.3},
    "layers that could be undone": {"residual": "reversible", "block": "reversible"},
    "a renewed depth memory": {
        "mixer": "attention(heads=2, value_path='shared_values')",
    },
}


@pytest.mark.conformance
@pytest.mark.parametrize("name", CARRIED)
@pytest.mark.parametrize("remat", ["none", "full"])
def test_a_frozen_part_changes_no_number_above_it(x64, name, remat):
    model = make(**CARRIED[name], remat=remat)
    variables = variables_of(model)
    rngs = {DROPOUT: jax.random.key(5)} if "dropout" in CARRIED[name] else None
    (value, wanted), whole = gradient(model, variables, rngs=rngs)
    (cut, written), part = gradient(model, variables, frozen=2, rngs=rngs)
    np.testing.assert_allclose(cut, value, rtol=1e-12)
    tolerance = 1e-9 if "undone" in name else 1e-11
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), written, wanted
    )
    whole = named_leaves(whole)
    for path, leaf in named_leaves(part).items():
        expected = np.array(whole[path])
        if "segment" in path:
            first = 0 if len(leaf) == 4 else 4 - len(leaf)
            expected[: max(2 - first, 0)] = 0
            if "segment_0" in path and len(leaf) < 4:
                expected[:] = 0
        elif path == "embedding":
            expected[:] = 0
        np.testing.assert_allclose(leaf, expected, rtol=0, atol=tolerance, err_msg=path)


def test_layers_that_are_undone_may_not_add_to_the_loss(x64):
    model = make(residual="reversible", block="reversible", ffn=Costly)
    variables = variables_of(model)
    with pytest.raises(ReslabError, match="add nothing to the loss; got size"):
        gradient(model, variables)
    # Evaluated, nobody asks for what they add.
    model.apply(variables, TOKENS)


@dataclasses.dataclass(frozen=True)
class Path:
    order: tuple[int, ...]
    fields: dict


PATHS = {
    "in order": Path((0, 1, 2, 3), {}),
    "some left out": Path((0, 3), {}),
    "some repeated": Path((0, 1, 1, 1, 2, 3), {}),
    "another order": Path((2, 0, 3, 1), {"residual": "hyper(streams=2)"}),
    "a pattern": Path(
        (0, 1, 2, 2, 1, 4),
        {"depth": 5, "mixer": ("attention(heads=2)", "gated_delta(heads=2)")},
    ),
}


def homes(body):
    """Span, block and row of every layer, in order of depth."""
    sizes = {}
    for path, leaf in named_leaves(body).items():
        span, block, _ = path.split("/", 2)
        sizes.setdefault(span, {})[block] = leaf.shape[0]
    return [
        (span, block, row)
        for span, blocks in sorted(sizes.items())
        for row in range(next(iter(blocks.values())))
        for block in sorted(blocks)
    ]


def along(params, order, like):
    """The parameters of the layers along a path, laid out like another model's."""
    given, plan = (
        named_leaves(params["layers"]["body"]),
        homes(params["layers"]["body"]),
    )
    goals, leaves = homes(like["layers"]["body"]), {}
    for path in named_leaves(like["layers"]["body"]):
        span, block, rest = path.split("/", 2)
        rows = [
            given[f"{home[0]}/{home[1]}/{rest}"][home[2]]
            for home, goal in zip([plan[n] for n in order], goals, strict=True)
            if goal[:2] == (span, block)
        ]
        leaves[path] = np.stack(rows)
    body = nested_leaves(leaves)
    return {**params, "layers": {**params["layers"], "body": body}}


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("is_unrolled", [False, True])
def test_a_path_is_the_stack_of_its_layers(x64, name, is_unrolled):
    order, fields = PATHS[name].order, PATHS[name].fields
    params = variables_of(make(**fields))["params"]
    mixers = fields.get("mixer", "attention(heads=2)")
    if not isinstance(mixers, str):
        mixers = tuple(mixers[layer % len(mixers)] for layer in order)
    straight = make(**fields | {"depth": len(order), "mixer": mixers})
    like = unbox(jax.eval_shape(straight.init, jax.random.key(0), TOKENS))["params"]
    wanted = straight.apply({"params": along(params, order, like)}, TOKENS)
    model = make(**fields, stack=f"path(layers={order})", is_unrolled=is_unrolled)
    found = jax.jit(lambda p: model.apply({"params": p}, TOKENS))(params)
    np.testing.assert_allclose(found, wanted, rtol=1e-10)


@pytest.mark.conformance
def test_a_path_generates_what_it_computes():
    single = {"dtype": jnp.float32, "param_dtype": jnp.float32}
    model = make(stack="path(layers=(0, 2, 2, 1))", **single)
    variables = variables_of(model)
    wanted = model.apply(variables, TOKENS)
    state = model.init_state(2, 6)
    for index in range(6):
        x, state = model.apply(
            variables,
            TOKENS[:, index : index + 1],
            positions=np.full((2, 1), index),
            state=state,
            method="hidden",
        )
        logits = model.apply(variables, x, method="logits")
        np.testing.assert_allclose(logits[:, 0], wanted[:, index], atol=1e-5)


REFUSED = {
    "a history": ({"residual": "attnres"}, "what every earlier layer wrote"),
    "a memory": (
        {"mixer": "attention(heads=2, value_path='value_residual')"},
        "got a depth memory",
    ),
    "statistics": ({"norm": "batch"}, "statistics of a model that trains"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_path_names_what_it_cannot_carry(x64, name):
    fields, message = REFUSED[name]
    model = make(**fields, stack="path(layers=(1, 0))")
    shapes = unbox(jax.eval_shape(model.init, jax.random.key(0), TOKENS))

    def apply(variables):
        return model.apply(variables, TOKENS, mutable=[BATCH_STATS])

    with pytest.raises(ReslabError, match=message):
        jax.eval_shape(apply, shapes)


@pytest.mark.parametrize("name", PATHS)
def test_a_route_is_the_path_that_it_names(x64, name):
    order, fields = PATHS[name].order, PATHS[name].fields
    variables = variables_of(make(**fields))
    wanted = make(**fields, stack=f"path(layers={order})").apply(variables, TOKENS)
    model, traces = make(**fields, stack="path"), []

    @jax.jit
    def run(variables, layers, count):
        traces.append(0)
        with routing(Route(layers, count)):
            return model.apply(variables, TOKENS)

    most = np.zeros(8, np.int32)
    most[: len(order)] = order
    np.testing.assert_allclose(run(variables, most, len(order)), wanted, rtol=1e-10)
    first = make(**fields, stack=f"path(layers={order[:1]})").apply(variables, TOKENS)
    np.testing.assert_allclose(run(variables, most, 1), first, rtol=1e-10)
    assert len(traces) == 1


def test_a_path_costs_what_it_applies(x64):
    model = make(**PATHS["a pattern"].fields, stack="path(layers=(0, 1, 1, 3, 1))")
    shapes = unbox(jax.eval_shape(model.init, jax.random.key(0), TOKENS))
    said = forward_flops_per_token(model, shapes["params"], TOKENS.shape[1])
    assert count_flops(model.apply, shapes, TOKENS) == TOKENS.size * said


def test_a_path_had_an_order(x64):
    with pytest.warns(FutureWarning, match="'order' is now layers"):
        old = make(stack="path(order=(1, 0))")
        variables = variables_of(make())
        found = old.apply(variables, TOKENS)
    wanted = make(stack="path(layers=(1, 0))").apply(variables, TOKENS)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("order", ["(0, 4)", "(-1,)", "(0, 1.0)", "(True,)"])
def test_a_path_has_layers_alone(x64, order):
    model = make(stack=f"path(layers={order})")
    with pytest.raises(ReslabError, match="numbers of layers, from 0 to 3; got"):
        jax.eval_shape(model.init, jax.random.key(0), TOKENS)


@pytest.mark.parametrize("stack", ["looped(loops=2)", "path(layers=(0, 1, 2, 3))"])
def test_a_cut_wants_layers_that_are_applied_once_in_their_order(x64, stack):
    model = make(stack=stack)
    with pytest.raises(ReslabError, match="a backward pass that ends at a layer"):
        gradient(model, variables_of(model), frozen=2)
