import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.core.surroundings import Context
from reslab.core.trees import count_parameters, named_leaves, unbox

X = np.random.default_rng(0).normal(size=(2, 6, 8)).astype(np.float32)
POSITIONS = np.broadcast_to(np.arange(6), (2, 6))


def make(spec, depth=2, residual="plain"):
    block = functools.partial(
        registry.factory("blocks", "standard"),
        mixer="attention(heads=2)",
        residual=residual,
        context=Context(position="rope"),
    )
    return registry.make(
        "stacks", spec, blocks=(block,), depth=depth, residual=residual
    )


def start(stack):
    variables = jax.jit(stack.init)(jax.random.key(0), X, positions=POSITIONS)
    return unbox(variables)["params"]


def run(stack, params):
    def loss(params):
        y, _ = stack.apply({"params": params}, X, positions=POSITIONS)
        return jnp.sum(jnp.sin(y)), y

    return jax.jit(jax.grad(loss, has_aux=True))(params)


@pytest.mark.conformance
@pytest.mark.parametrize(
    "residual",
    ["plain", pytest.param("hyper(streams=2)", marks=pytest.mark.conformance)],
)
def test_one_pass_is_the_uniform_stack(residual):
    looped, uniform = make("looped(loops=1)", 2, residual), make("uniform", 2, residual)
    params = start(uniform)
    chex.assert_trees_all_equal(start(looped), params)
    for actual, wanted in zip(
        jax.tree.leaves(run(looped, params)),
        jax.tree.leaves(run(uniform, params)),
        strict=True,
    ):
        np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.conformance
def test_three_passes_are_a_uniform_stack_with_its_weights_repeated():
    looped, uniform = make("looped(loops=3)"), make("uniform", depth=6)
    params = start(looped)
    repeated = jax.tree.map(lambda leaf: jnp.concatenate([leaf] * 3), params)
    gradient, y = run(looped, params)
    wide_gradient, wanted = run(uniform, repeated)
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)
    # A weight used three times receives the sum of three gradients.
    wide = named_leaves(wide_gradient)
    for name, leaf in named_leaves(gradient).items():
        summed = np.reshape(wide[name], (3, *leaf.shape)).sum(axis=0)
        np.testing.assert_allclose(leaf, summed, rtol=1e-4, atol=2e-5, err_msg=name)


def test_parameters_do_not_grow_with_passes_but_cost_and_state_do():
    def sizes(loops):
        stack = make(f"looped(loops={loops})")
        shapes = jax.eval_shape(
            functools.partial(stack.init, positions=POSITIONS), jax.random.key(0), X
        )
        state = stack.init_state(2, 6, 8)
        return (
            count_parameters(shapes),
            stack.mixing_flops(6, 8),
            count_parameters(state),
        )

    once, thrice = sizes(1), sizes(3)
    assert thrice[0] == once[0]
    assert thrice[1:] == (3 * once[1], 3 * once[2])


def test_every_pass_keeps_a_state_of_its_own():
    stack = make("looped(loops=3)")
    params = start(stack)
    _, state = jax.jit(stack.apply)(
        {"params": params},
        X,
        positions=POSITIONS,
        state=stack.init_state(2, 6, 8),
    )
    keys = np.asarray(state[0][0]["key"])
    assert keys.shape == (3, 2, 2, 6, 2, 4)
    assert np.abs(keys[0] - keys[1]).max() > 1e-3
    np.testing.assert_array_equal(state[0][0]["length"], np.full((3, 2, 2), 6))


def test_refuses_no_passes():
    with pytest.raises(ReslabError, match="loops: expected at least 1; got 0"):
        make("looped(loops=0)")


@pytest.mark.conformance
@pytest.mark.parametrize(
    "injection", ["none", "add", pytest.param("concat", marks=pytest.mark.conformance)]
)
def test_each_pass_sees_its_step_and_the_input(injection):
    spec = f"looped(loops=3, has_step_embedding=True, injection='{injection}')"
    stack, uniform = make(spec), make("uniform")
    params = start(stack)
    steps = np.random.default_rng(1).normal(size=(3, 8)).astype(np.float32)
    params["step_embedding"] = steps
    layers = {k: v for k, v in params.items() if k in start(uniform)}
    s = X
    for step in steps:
        if injection == "add":
            s = s + X
        if injection == "concat":
            first, second = params["injection_kernel"]
            s = s @ first + X @ second
        s, _ = uniform.apply(
            {"params": layers}, s + step[None, None], positions=POSITIONS
        )
    slopes, y = run(stack, params)
    np.testing.assert_allclose(y, s, rtol=1e-4, atol=1e-4)
    assert all(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(slopes))
    # As many parameters whatever the number of passes, but for the steps.
    other = start(make(spec.replace("loops=3", "loops=7")))
    assert count_parameters(other) == count_parameters(params) + 4 * 8


@pytest.mark.conformance
def test_several_streams_are_entered_alike():
    stack = make("looped(loops=2, injection='add')", residual="hyper(streams=2)")
    _, y = run(stack, start(stack))
    assert np.all(np.isfinite(y))
