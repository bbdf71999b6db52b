"""One layer at every depth: what it stores, and which norms keep depths apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.trees import count_parameters, named_leaves, nested_leaves
from tests.nn.stacks.conftest import TOKENS, make, start


def size(depth, **fields):
    model = make("wide", depth=depth, **fields)
    shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)["params"]
    return count_parameters(shapes)


def test_parameters_grow_by_norms_alone():
    assert size(5, norm="layer") - size(1, norm="layer") == 4 * 4 * 8
    assert size(5) - size(1) == 4 * 2 * 8
    experts = {"ffn": "experts(experts=4, chosen=2, hidden=8)", "norm": "layer"}
    assert size(3, **experts) - size(1, **experts) == 2 * 4 * 8


def test_with_equal_norms_it_is_the_loop():
    wide, loop = make("wide", depth=3), make("looped(loops=3)", depth=1)
    wanted = start(loop)
    leaves = {}
    for name, leaf in named_leaves(wanted).items():
        if "input_norm" in name:
            name = name.replace("input_norm/", "input_norm/pass_norm/")
            leaf = np.repeat(leaf[:, None], 3, axis=1)
        leaves[name] = leaf
    variables = nested_leaves(leaves)
    assert jax.tree.structure(start(wide)) == jax.tree.structure(variables)
    np.testing.assert_allclose(
        wide.apply(variables, TOKENS), loop.apply(wanted, TOKENS), atol=1e-6
    )


def test_each_depth_has_norms_of_its_own():
    """The gain of one depth changes what follows it, and learns from nothing else."""
    model = make("wide(unique=2)", depth=4)
    variables = start(model)

    def run(variables):
        return jnp.sum(jnp.sin(model.apply(variables, TOKENS)))

    slopes = named_leaves(jax.jit(jax.grad(run))(variables))
    own = {name: leaf for name, leaf in slopes.items() if "pass_norm" in name}
    assert len(own) == 2
    for name, slope in own.items():
        layers, passes = slope.shape[:2]
        assert (layers, passes) == (2, 2)
        sizes = np.abs(slope).max(axis=-1)
        assert np.all(sizes > 0), name
        # Depths that share a layer differ.
        assert np.max(np.abs(slope[:, 0] - slope[:, 1])) > 1e-3 * np.max(sizes)


def test_one_expert_is_the_dense_layer():
    dense = make("wide", depth=3, ffn="swiglu(hidden=8)")
    model = make("wide", depth=3, ffn="experts(experts=1, chosen=1, hidden=8)")
    leaves = named_leaves(start(dense))
    given = {}
    for name, leaf in named_leaves(start(model)).items():
        if name.endswith("/kernels"):
            name_of = name.replace("/kernels", "/kernel")
            given[name] = leaves[name_of].reshape(leaf.shape)
        else:
            given[name] = leaves.get(name, leaf)
    np.testing.assert_allclose(
        model.apply(nested_leaves(given), TOKENS),
        dense.apply(nested_leaves(leaves), TOKENS),
        atol=1e-5,
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"norm": "batch"}, "stacks 'wide': norm 'batch': expected a norm of one tok"),
        (
            {"placement": "mix_ln(alpha=0.25)"},
            "layers 0 and 1: expected the same parts.*one spec of each",
        ),
        ({"stack": "looped", "norm": "power"}, "norm power: expected one that is appl"),
    ],
)
def test_refuses_in_one_line(fields, message):
    model = make(**{"stack": "wide", **fields})

    def apply(tokens):
        variables = model.init(jax.random.key(0), tokens)
        return model.apply(variables, tokens)

    with pytest.raises(ReslabError, match=message) as caught:
        jax.eval_shape(apply, TOKENS)
    assert "\n" not in str(caught.value)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", registry.names("residuals"))
def test_each_residual_is_shared_or_refused(name):
    fields = {"block": "reversible"} if name == "reversible" else {}
    model = make("wide", residual=name, **fields)
    try:
        shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)
        jax.eval_shape(model.apply, shapes, TOKENS)
    except ReslabError as error:
        assert name in str(error)
