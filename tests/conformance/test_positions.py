"""What every position encoding keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core import registry
from reslab.core.trees import unbox

BATCH, LENGTH, WIDTH, HEADS, HEAD_DIM = 2, 8, 16, 2, 8


@pytest.fixture(scope="module", params=registry.names("positions"))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def positions():
    return jnp.broadcast_to(jnp.arange(LENGTH), (BATCH, LENGTH))


@pytest.fixture(scope="module")
def position(name, positions, randomized):
    module = registry.make("positions", name, max_length=32)
    x = jnp.zeros((BATCH, LENGTH, WIDTH))
    variables = module.init(jax.random.key(0), x, positions, method="embed")
    return module, randomized(variables)


def embed(position, x, positions):
    module, variables = position
    return module.apply(variables, x, positions, method="embed")


def rotate(position, x, positions):
    module, variables = position
    return module.apply(variables, x, positions, method="rotate")


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(1), (BATCH, LENGTH, WIDTH))


@pytest.fixture(scope="module")
def heads():
    return jax.random.normal(jax.random.key(2), (BATCH, LENGTH, HEADS, HEAD_DIM))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_keeps_shape_and_dtype(position, x, heads, positions, dtype):
    for function, array in ((embed, x), (rotate, heads)):
        y = function(position, array.astype(dtype), positions)
        assert (y.shape, y.dtype) == (array.shape, dtype)
        assert np.all(np.isfinite(np.asarray(y, np.float32)))


def test_depends_on_the_position_given_not_on_the_place(position, x, heads, positions):
    order = jax.random.permutation(jax.random.key(4), LENGTH)
    for function, array in ((embed, x), (rotate, heads)):
        straight = function(position, array, positions)[:, order]
        shuffled = function(position, array[:, order], positions[:, order])
        np.testing.assert_allclose(shuffled, straight, atol=1e-6)


def test_embeds_by_adding_one_vector_for_each_position(position, x, positions):
    added = embed(position, x, positions) - x
    np.testing.assert_allclose(added[0], added[1], atol=1e-6)


def test_scores_depend_on_the_distance_only(position, heads, positions):
    def scores(shift):
        query = rotate(position, heads, positions + shift)
        key = rotate(position, heads[:, ::-1], positions + shift)
        return jnp.einsum("blhd,bshd->bhls", query, key)

    np.testing.assert_allclose(scores(13), scores(0), atol=1e-4)


def test_compiled_is_eager(position, x, heads, positions):
    for function, array in ((embed, x), (rotate, heads)):
        compiled = jax.jit(lambda a, p, f=function: f(position, a, p))
        eager = function(position, array, positions)
        np.testing.assert_allclose(compiled(array, positions), eager, atol=1e-6)


def test_uses_every_parameter(position, x, positions, assert_uses_every_parameter):
    module, variables = position
    assert_uses_every_parameter(
        lambda v: module.apply(v, x, positions, method="embed"), variables
    )


def test_stores_parameters_in_the_dtype_asked_for(name, x, positions):
    module = registry.make("positions", name, param_dtype=jnp.bfloat16)
    y, variables = module.init_with_output(
        jax.random.key(0), x, positions, method="embed"
    )
    assert y.dtype == x.dtype
    for leaf in jax.tree.leaves(unbox(variables)):
        assert leaf.dtype == jnp.bfloat16
