"""Counted FLOPs equal the closed form, exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.sharding import Mesh, PartitionSpec

from reslab.core.errors import ReslabError
from reslab.observe.flops import count_flops

BATCH, WIDTH, DEPTH = 6, 8, 5
MATMUL = 2 * BATCH * WIDTH * WIDTH


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


X = shape(BATCH, WIDTH)
LAYERS = shape(DEPTH, WIDTH, WIDTH)


def stack(layers, x, *, is_remat=False):
    def layer(x, kernel):
        return jnp.tanh(x @ kernel), None

    return jax.lax.scan(jax.checkpoint(layer) if is_remat else layer, x, layers)[0]


def loss(layers, x, *, is_remat=False):
    return jnp.sum(stack(layers, x, is_remat=is_remat))


def test_stack_under_scan_equals_unrolled():
    def unrolled(layers, x):
        for i in range(DEPTH):
            x = jnp.tanh(x @ layers[i])
        return x

    assert count_flops(stack, LAYERS, X) == DEPTH * MATMUL
    assert count_flops(unrolled, LAYERS, X) == DEPTH * MATMUL


@pytest.mark.parametrize("is_remat", [False, True])
def test_gradient_is_two_forwards_and_remat_one_more(is_remat):
    def step(layers, x):
        return jax.grad(loss, argnums=(0, 1))(layers, x, is_remat=is_remat)

    assert count_flops(step, LAYERS, X) == (4 if is_remat else 3) * DEPTH * MATMUL


def test_accumulation_multiplies():
    def step(layers, batches):
        def one(total, x):
            gradient = jax.grad(loss)(layers, x)
            return total + gradient, None

        return jax.lax.scan(one, jnp.zeros_like(layers), batches)[0]

    # Inside a scan even the first layer's input has a gradient: it is the carry.
    count = count_flops(jax.jit(step), LAYERS, shape(4, BATCH, WIDTH))
    assert count == 4 * 3 * DEPTH * MATMUL


def test_batched_and_grouped_products():
    assert count_flops(
        lambda q, k: jnp.einsum("bqhd,bkhd->bhqk", q, k),
        shape(2, 3, 4, 5),
        shape(2, 7, 4, 5),
    ) == (2 * 2 * 4 * 3 * 7 * 5)
    assert count_flops(
        jax.lax.ragged_dot,
        shape(12, 4),
        shape(3, 4, 5),
        jax.ShapeDtypeStruct((3,), jnp.int32),
    ) == (2 * 12 * 4 * 5)


def test_custom_derivatives_count_once():
    @jax.custom_vjp
    def double(x):
        return x @ x

    double.defvjp(lambda x: (x @ x, x), lambda x, g: (g @ x.T + x.T @ g,))

    @jax.custom_jvp
    def other(x):
        return x @ x

    other.defjvp(lambda p, t: (other(p[0]), t[0] @ p[0] + p[0] @ t[0]))
    square = shape(WIDTH, WIDTH)
    one = 2 * WIDTH**3
    for function in (double, other, jax.jit(double), jax.checkpoint(double)):
        assert count_flops(function, square) == one
    for function in (double, other, jax.jit(other)):
        gradient = jax.grad(lambda x, f=function: jnp.sum(f(x)))
        assert count_flops(gradient, square) == 3 * one


def test_branches_count_the_largest():
    def function(x):
        return jax.lax.switch(
            jnp.int32(0), [lambda x: x, lambda x: x @ x.T @ x, lambda x: x], x
        )

    assert count_flops(function, X) == 2 * (2 * BATCH * BATCH * WIDTH)


def test_loops_of_unknown_length():
    def counted(x):
        return jax.lax.fori_loop(0, 3, lambda _, x: x @ x, x)

    def unknown(x):
        return jax.lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ x, x)

    def harmless(x):
        return jax.lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x - 1, x) @ x

    square = shape(WIDTH, WIDTH)
    assert count_flops(counted, square) == 3 * 2 * WIDTH**3
    assert count_flops(harmless, square) == 2 * WIDTH**3
    with pytest.raises(ReslabError, match="unknown length"):
        count_flops(unknown, square)


def test_shard_map_counts_all_devices():
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ("data", "tensor"))
    split = PartitionSpec("data", None)

    def function(x, kernel):
        return jax.shard_map(
            lambda x, kernel: x @ kernel,
            mesh=mesh,
            in_specs=(split, PartitionSpec(None, "tensor")),
            out_specs=PartitionSpec("data", "tensor"),
        )(x, kernel)

    count = count_flops(jax.jit(function), shape(16, WIDTH), shape(WIDTH, 10))
    assert count == 2 * 16 * WIDTH * 10


@pytest.mark.parametrize("flops", [None, 123])
def test_pallas_counts_its_estimate(flops):
    def kernel(x, out):
        out[...] = x[...] @ x[...]

    estimate = flops and pl.CostEstimate(
        flops=flops, transcendentals=0, bytes_accessed=0
    )

    def function(x):
        return pl.pallas_call(kernel, out_shape=x, cost_estimate=estimate)(x)

    assert count_flops(function, shape(8, 8)) == (flops or 0)


def convolve(x, kernel, **options):
    return jax.lax.conv_general_dilated(
        x, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
    )


def naive_products(size, taps, stride, dilation, pad, output):
    """Pairs of an output and a tap that meet a real input, along one axis."""
    return sum(
        0 <= o * stride + t * dilation - pad < size
        for o in range(output)
        for t in range(taps)
    )


@pytest.mark.parametrize(
    ("stride", "dilation", "padding", "groups"),
    [(1, 1, 0, 1), (1, 1, 1, 1), (2, 1, 1, 1), (3, 2, 2, 2), (1, 1, 1, 4)],
)
def test_convolution_and_its_gradients(stride, dilation, padding, groups):
    size, taps, inputs, outputs = 9, 3, 4, 8
    x, kernel = (
        shape(2, size, size, inputs),
        shape(taps, taps, inputs // groups, outputs),
    )

    def function(x, kernel):
        return convolve(
            x,
            kernel,
            window_strides=(stride, stride),
            padding=[(padding, padding)] * 2,
            rhs_dilation=(dilation, dilation),
            feature_group_count=groups,
        )

    side = (size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
    pairs = naive_products(size, taps, stride, dilation, padding, side)
    expected = 2 * 2 * outputs * (inputs // groups) * pairs**2
    assert count_flops(function, x, kernel) == expected
    for argument in (0, 1):
        gradient = jax.grad(lambda *a: jnp.sum(jnp.sin(function(*a))), argument)
        assert count_flops(gradient, x, kernel) == 2 * expected
