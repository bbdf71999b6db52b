"""What every feed-forward layer keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core import registry
from reslab.core.parameters import logical_axes
from reslab.core.trees import unbox
from reslab.models.examples import run_example
from reslab.parallel.mesh import batch_sharding, tree_sharding, use_mesh

WIDTH = 16


@pytest.fixture(scope="module", params=registry.names("ffns"))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def ffn(name, randomized):
    variables = randomized(run_example("ffns", name, WIDTH)[1])
    return registry.make("ffns", name).apply, variables


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(2), (8, 4, WIDTH))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_keeps_shape_and_computes_in_the_dtype_asked_for(name, x, dtype):
    module = registry.make("ffns", name, dtype=dtype)
    y, variables = module.init_with_output(jax.random.key(0), 100 * x.astype(dtype))
    assert (y.shape, y.dtype) == (x.shape, dtype)
    assert np.all(np.isfinite(np.asarray(y, np.float32)))
    for leaf in jax.tree.leaves(unbox(variables)):
        assert leaf.dtype == jnp.float32


def test_no_token_changes_an_earlier_one(ffn, x):
    apply, variables = ffn
    changed = apply(variables, x.at[:, 2].add(1.0)) - apply(variables, x)
    np.testing.assert_array_equal(changed[:, :2], 0.0)
    assert np.all(np.any(np.asarray(changed[:, 2]) != 0, axis=-1))


def test_output_scale_reaches_the_projection_into_the_stream(name, x):
    # Its rounds add their own input.
    spec = (
        "chain_of_experts(has_residual=False)" if name == "chain_of_experts" else name
    )
    module = registry.make("ffns", spec, output_scale=0.0)
    y, _ = module.init_with_output(jax.random.key(0), x)
    np.testing.assert_array_equal(y, 0.0)


def test_compiled_is_eager(ffn, x, assert_close):
    apply, variables = ffn
    assert_close(jax.jit(apply)(variables, x), apply(variables, x), 1e-5)


def test_recomputing_changes_nothing(ffn, x, assert_close):
    apply, variables = ffn

    def gradient(function):
        return jax.jit(jax.grad(lambda v: jnp.sum(jnp.sin(function(v, x)))))(variables)

    assert_close(gradient(jax.checkpoint(apply)), gradient(apply), 1e-5)


def test_uses_every_parameter(name, ffn, x, assert_uses_every_parameter):
    """In its layer, or in a later one that reads what it leaves."""
    apply, variables = ffn

    def run(variables):
        if not hasattr(registry.unbound("ffns", name), "writes_shared"):
            return apply(variables, x)
        first, left = apply(variables, x, shared={})
        return first + apply(variables, x, shared=left)[0]

    assert_uses_every_parameter(run, variables)


def test_gradient_is_that_of_finite_differences(
    name, x, randomized, x64, assert_gradient_is_slope
):
    wide = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    module = registry.make("ffns", name, **wide)
    x = np.asarray(x[:2, :2], np.float64)
    variables = randomized(module.init(jax.random.key(0), x))
    assert_gradient_is_slope(module.apply, variables, x)


def test_on_eight_devices_is_on_one(name, ffn, x, mesh, assert_close):
    apply, variables = ffn

    def loss(variables, x):
        y = apply(variables, x)
        return jnp.sum(jnp.sin(y)), y

    run = jax.grad(loss, has_aux=True)
    alone = jax.jit(run)(variables, x)
    with logical_axes():
        boxed = jax.eval_shape(registry.make("ffns", name).init, jax.random.key(0), x)
    with use_mesh(mesh):
        placed = jax.device_put(variables, tree_sharding(boxed, mesh))
        together = jax.jit(run)(placed, jax.device_put(x, batch_sharding(mesh)))
    assert len(together[1].sharding.device_set) == 8
    leaves = jax.tree.leaves(placed)
    assert any(not leaf.sharding.is_fully_replicated for leaf in leaves)
    assert_close(together, alone, 1e-5)
