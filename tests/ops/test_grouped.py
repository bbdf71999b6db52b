"""Grouped products: against a loop, forward, backward and under vmap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.ops.grouped import grouped_product

SIZES = np.array([[2, 0, 4, 1], [7, 0, 0, 0], [1, 2, 3, 1]], np.int32)


@pytest.fixture
def arrays(x64):
    random = np.random.default_rng(0)
    return random.normal(size=(3, 7, 5)), random.normal(size=(4, 5, 6))


def loop(x, kernels, sizes):
    group = np.repeat(np.arange(len(sizes)), sizes)
    return jnp.stack([row @ kernels[g] for row, g in zip(x, group, strict=True)])


@pytest.mark.parametrize("number", range(3))
def test_is_a_loop_over_rows(arrays, number):
    x, kernels = arrays[0][number], arrays[1]

    def value(function):
        return lambda x, k: jnp.sum(jnp.sin(function(x, k, SIZES[number])))

    found = jax.value_and_grad(value(grouped_product), (0, 1))(x, kernels)
    wanted = jax.value_and_grad(value(loop), (0, 1))(x, kernels)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


def test_under_vmap_each_is_what_it_is_alone(arrays):
    x, kernels = arrays

    def value(x, kernels, sizes):
        return jnp.sum(jnp.sin(grouped_product(x, kernels, sizes)))

    slopes = jax.grad(value, (0, 1))
    found = jax.jit(jax.vmap(slopes, (0, None, 0)))(x, kernels, SIZES)
    for number in range(3):
        wanted = slopes(x[number], kernels, SIZES[number])
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one[number], other, rtol=1e-12, atol=1e-12)
    # Batched inside of the gradient.
    whole = jax.grad(lambda k: jnp.sum(jax.vmap(value, (0, None, 0))(x, k, SIZES)))
    np.testing.assert_allclose(whole(kernels), found[1].sum(0), rtol=1e-12)


def test_the_tiled_kernel_is_the_product():
    """Emulated, with memory that is NaN until written; some rows have no group."""
    pltpu = pytest.importorskip("jax.experimental.pallas.tpu")
    random = np.random.default_rng(1)
    x = jnp.asarray(random.normal(size=(256, 128)), jnp.float32)
    kernels = jnp.asarray(random.normal(size=(3, 128, 256)), jnp.float32)
    sizes = jnp.asarray([70, 0, 130], jnp.int32)
    is_token = (jnp.arange(256) < sizes.sum())[:, None]

    def value(x, kernels, is_tiled):
        y = grouped_product(x, kernels, sizes, is_tiled=is_tiled)
        y = jnp.where(is_token, y, 0)
        return jnp.sum(jnp.sin(y)), y

    step = jax.grad(value, (0, 1), has_aux=True)
    wanted = step(x, kernels, False)
    with pltpu.force_tpu_interpret_mode():
        (by_x, by_kernels), y = step(x, kernels, True)
    by_x = jnp.where(is_token, by_x, 0)
    for one, other in zip((y, by_x, by_kernels), (wanted[1], *wanted[0]), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-3)
