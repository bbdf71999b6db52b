"""What every norm keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core import registry
from reslab.core.model_state import model_state_of
from reslab.core.trees import unbox
from reslab.models.examples import run_example
from reslab.parallel.mesh import batch_sharding, use_mesh

WIDTH = 16


@pytest.fixture(scope="module", params=registry.names("norms"))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def norm(name, randomized):
    """The norm, evaluated, as a function of (parameters, x); moved parameters."""
    variables = run_example("norms", name, WIDTH)[1]
    state = model_state_of(variables)
    module = registry.make("norms", name)

    def apply(params, x):
        return module.apply({**params, **state}, x)

    return apply, randomized({k: v for k, v in variables.items() if k not in state})


@pytest.fixture(scope="module")
def x():
    return 1.0 + 2.0 * jax.random.normal(jax.random.key(2), (8, 4, WIDTH))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_keeps_shape_and_dtype(norm, x, dtype):
    apply, variables = norm
    y = apply(variables, x.astype(dtype))
    assert y.shape == x.shape
    assert y.dtype == dtype


@pytest.mark.parametrize("size", [0.0, 1e-20, 1e4])
def test_is_finite_in_bfloat16(norm, x, size):
    apply, variables = norm
    x = (size * x).astype(jnp.bfloat16)
    y, pull = jax.vjp(apply, variables, x)
    for leaf in jax.tree.leaves((y, pull(jnp.ones_like(y)))):
        assert np.all(np.isfinite(np.asarray(leaf, np.float32)))


def test_is_the_float32_result_rounded(norm, x):
    apply, variables = norm
    short = x.astype(jnp.bfloat16)
    wide = apply(variables, short.astype(jnp.float32))
    np.testing.assert_array_equal(apply(variables, short), wide.astype(jnp.bfloat16))


def test_compiled_is_eager(norm, x, assert_close):
    apply, variables = norm
    assert_close(jax.jit(apply)(variables, x), apply(variables, x), 1e-6)


def test_maps_over_a_batch(norm, x, assert_close):
    apply, variables = norm
    mapped = jax.vmap(apply, in_axes=(None, 0))(variables, x[:, None])
    assert_close(mapped[:, 0], apply(variables, x), 1e-6)


def test_gradient_is_that_of_finite_differences(norm, x, x64, assert_gradient_is_slope):
    apply, variables = norm
    arguments = jax.tree.map(lambda a: np.asarray(a, np.float64), (variables, x[:2]))
    assert_gradient_is_slope(apply, *arguments)


def test_recomputing_changes_nothing(norm, x, assert_close):
    apply, variables = norm

    def loss(function):
        return lambda variables, x: jnp.sum(jnp.sin(function(variables, x)))

    plain = jax.grad(loss(apply), argnums=(0, 1))(variables, x)
    again = jax.grad(loss(jax.checkpoint(apply)), argnums=(0, 1))(variables, x)
    assert_close(again, plain, 1e-6)


def test_uses_every_parameter(name, norm, x, assert_uses_every_parameter):
    apply, variables = norm
    if name == "progressive_rep_batch":  # Evaluated, it has left the first norm.
        own = {k: v for k, v in variables["params"].items() if k != "first"}
        variables = {"params": own}
    assert_uses_every_parameter(lambda v: apply(v, x), variables)


def test_stores_parameters_in_the_dtype_asked_for(name, x):
    module = registry.make("norms", name, param_dtype=jnp.bfloat16)
    y, variables = module.init_with_output(jax.random.key(0), x)
    assert y.dtype == x.dtype
    for leaf in jax.tree.leaves(unbox(variables).get("params", {})):
        assert leaf.dtype == jnp.bfloat16


def test_on_eight_devices_is_on_one(norm, x, mesh, assert_close):
    apply, variables = norm

    def loss(variables, x):
        y = apply(variables, x)
        return jnp.sum(jnp.sin(y)), y

    run = jax.grad(loss, argnums=(0, 1), has_aux=True)
    alone = jax.jit(run)(variables, x)
    with use_mesh(mesh):
        spread = jax.device_put(x, batch_sharding(mesh))
        together = jax.jit(run)(variables, spread)
    assert len(together[1].sharding.device_set) == 8
    assert_close(together, alone, 1e-5)
