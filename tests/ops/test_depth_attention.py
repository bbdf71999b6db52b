"""Attention along depth: kernels against their definitions, refusals."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType

from reslab.core.errors import ReslabError
from reslab.ops.depth_attention import mix_tpu, pallas_tpu, rows_tpu
from reslab.ops.depth_attention.api import depth_mix, depth_read
from reslab.ops.depth_attention.reference import attend, merge, weighted_sums


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Two sources in a block, so that few are several blocks."""
    monkeypatch.setattr(rows_tpu, "LARGEST_WHOLE", 2)
    monkeypatch.setattr(rows_tpu, "LARGEST_CHUNK", 2)


def both_ways(run, arguments, cotangents):
    """What a function returns, and its gradients."""

    def gradients(*arguments):
        outputs, pull = jax.vjp(run, *arguments)
        return outputs, pull(cotangents)

    return jax.jit(gradients)(*arguments)


# Rows, rows read, readers, batch, length, features, dtype.
READS = [
    (1, 1, 1, 1, 1, 128, "float32"),
    (2, 2, 2, 2, 9, 200, "float32"),
    (5, 3, 1, 1, 40, 128, "float32"),  # Three blocks of sources, one not read.
    (3, 3, 3, 2, 7, 128, "float32"),  # Several readers: the matrix unit.
    (2, 2, 3, 1, 20, 256, "bfloat16"),
    (4, 3, 1, 1, 24, 128, "bfloat16"),
]


@pytest.mark.parametrize("shape", READS, ids=str)
def test_the_read_equals_the_reference(emulated, shape):
    rows, limit, readers, *tokens, features, dtype = shape
    values, by_reading = emulated.arrays(
        [(rows, *tokens, features), (readers, *tokens, features)], dtype
    )
    queries, by_lse = emulated.arrays([(readers, features), (readers, *tokens)], seed=1)
    queries = queries / features**0.5 * 3

    def kernel(values, queries):
        return pallas_tpu.read(values, queries, jnp.int32(limit), 1e-6, True)

    def reference(values, queries):
        reading, lse = attend(values.astype(jnp.float32), queries, 1e-6, limit)
        return reading.astype(dtype), lse

    arguments = (values, queries), (by_reading, by_lse)
    got = both_ways(kernel, *arguments)
    emulated.assert_close(got, both_ways(reference, *arguments), dtype)
    assert not jnp.any(got[1][0][limit:])


@pytest.mark.conformance
def test_sources_that_are_not_read_may_hold_anything(emulated):
    values, by_reading = emulated.arrays([(5, 1, 8, 128), (1, 1, 8, 128)])
    (queries,) = emulated.arrays([(1, 128)], seed=1)
    poisoned = values.at[3:].set(jnp.nan)

    def run(values, queries):
        return pallas_tpu.read(values, queries, jnp.int32(3), 1e-6, emulated.interpret)

    cotangents = (by_reading, jnp.zeros((1, 1, 8)))
    got = both_ways(run, (poisoned, queries), cotangents)
    emulated.assert_close(got[0], attend(values[:3], queries, 1e-6), "float32")
    assert all(jnp.all(jnp.isfinite(a)) for a in jax.tree.leaves(got))


@pytest.mark.parametrize("rows, limit", [(2, 1), (5, 3)])
def test_gradients_of_later_readers_are_added_to(emulated, rows, limit):
    values, *by_readings = emulated.arrays([(rows, 2, 5, 128), *[(1, 2, 5, 128)] * 2])
    queries, *by_lses = emulated.arrays([(1, 128), *[(1, 2, 5)] * 2], seed=1)

    def through(values, queries):
        *first, values = pallas_tpu.read_through(
            values, queries, jnp.int32(limit), 1e-6, True
        )
        *second, values = pallas_tpu.read_through(
            values, 2 * queries, jnp.int32(rows), 1e-6, True
        )
        return first, second

    def apart(values, queries):
        first = attend(values, queries, 1e-6, limit)
        return [*first], [*attend(values, 2 * queries, 1e-6)]

    cotangents = tuple(map(list, zip(by_readings, by_lses, strict=True)))
    arguments = (values, queries), cotangents
    got, expected = (both_ways(run, *arguments) for run in (through, apart))
    emulated.assert_close(got, expected)


# Rows, rows read, readers, batch, length, features, dtype.
MIXES = [
    (1, 1, 1, 1, 1, 128, "float32"),
    (2, 1, 3, 2, 9, 200, "float32"),
    (5, 3, 1, 1, 40, 128, "float32"),  # Three blocks of sources, one not read.
    (5, 5, 4, 1, 20, 256, "bfloat16"),
]


@pytest.mark.parametrize("shape", MIXES, ids=str)
def test_the_weighted_sum_equals_the_reference(emulated, shape):
    rows, limit, readers, *tokens, features, dtype = shape
    values, by_mixed, by_values = emulated.arrays(
        [
            (rows, *tokens, features),
            (readers, *tokens, features),
            (rows, *tokens, features),
        ],
        dtype,
    )
    (weights,) = emulated.arrays([(readers, rows, *tokens)], seed=1)
    interpret = emulated.interpret if features == 200 else True

    def alone(values, weights):
        return mix_tpu.mix(values, weights, jnp.int32(limit), interpret)

    def through(values, weights):
        return mix_tpu.mix_through(values, weights, jnp.int32(limit), True)

    def reference(values, weights):
        return weighted_sums(values, weights, limit).astype(dtype)

    def both(values, weights):
        return reference(values, weights), values

    arguments = values, weights
    got = both_ways(alone, arguments, by_mixed)
    emulated.assert_close(got, both_ways(reference, arguments, by_mixed), dtype)
    assert not jnp.any(got[1][0][limit:])
    got = both_ways(through, arguments, (by_mixed, by_values))
    expected = both_ways(both, arguments, (by_mixed, by_values))
    emulated.assert_close(got, expected, dtype)


def test_sources_that_are_not_mixed_may_hold_anything(emulated):
    values, by_mixed = emulated.arrays([(5, 1, 8, 128), (2, 1, 8, 128)])
    (weights,) = emulated.arrays([(2, 5, 1, 8)], seed=1)

    def run(values, weights):
        return mix_tpu.mix(values, weights, jnp.int32(3), emulated.interpret)

    poisoned = values.at[3:].set(jnp.nan), weights.at[:, 3:].set(jnp.nan)
    mixed, gradients = both_ways(run, poisoned, by_mixed)
    emulated.assert_close(mixed, weighted_sums(values[:3], weights[:, :3]), "float32")
    assert all(jnp.all(jnp.isfinite(a)) for a in gradients)


@pytest.mark.conformance
def test_two_phases_are_one_reading(emulated):
    values, update = emulated.arrays([(4, 1, 6, 128), (1, 6, 128)])
    (query,) = emulated.arrays([(128,)], seed=1)
    readings, lse = depth_read(values[:3], query[None])
    total = values[3] + update
    merged, _ = merge(readings[0], lse[0], total, query)
    whole, _ = depth_read(jnp.concatenate([values[:3], total[None]]), query[None])
    emulated.assert_close(merged, whole[0])


@pytest.mark.conformance
@pytest.mark.parametrize("last", ["tensor", "sequence"])
def test_devices_share_the_batch(emulated, last):
    values, by_reading = emulated.arrays([(3, 8, 4, 128), (2, 8, 4, 128)])
    queries, by_lse = emulated.arrays([(2, 128), (2, 8, 4)], seed=1)
    (weights,) = emulated.arrays([(2, 3, 8, 4)], seed=3)

    def run(values, queries, weights):
        readings, lse = pallas_tpu.read(values, queries, jnp.int32(2), 1e-6, True)
        mixed = mix_tpu.mix_through(values, weights, jnp.int32(2), True)
        return (readings, lse), mixed

    arguments = values, queries, weights
    cotangents = (by_reading, by_lse), (by_reading, values)
    expected = both_ways(run, arguments, cotangents)
    kinds = (AxisType.Auto,) * 3
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", last), axis_types=kinds)
    with jax.set_mesh(mesh):
        got = both_ways(run, arguments, cotangents)
    emulated.assert_close(got, expected)


def test_under_vmap_and_remat(emulated):
    values, queries = emulated.arrays([(2, 3, 1, 4, 128), (2, 128)])

    def loss(run):
        def one(values):
            reading, lse = jax.checkpoint(run)(values, queries, jnp.int32(2))
            return jnp.sum(jnp.sin(reading)) + jnp.sum(lse)

        return lambda values: jnp.sum(jax.vmap(one)(values))

    def kernel(values, queries, limit):
        return pallas_tpu.read(values, queries, limit, 1e-6, True)

    def reference(values, queries, limit):
        return attend(values, queries, 1e-6, limit)

    got, expected = (
        jax.jit(jax.grad(loss(run)))(values) for run in (kernel, reference)
    )
    emulated.assert_close(got, expected)


def test_a_gradient_of_the_gradient_is_refused(emulated):
    values, queries = emulated.arrays([(2, 1, 8, 128), (1, 128)])

    def loss(values):
        reading, _ = pallas_tpu.read(values, queries, jnp.int32(2), 1e-6, True)
        return jnp.sum(reading**2)

    with pytest.raises(ReslabError, match=r"depth_read.*implementation"):
        jax.grad(lambda v: jnp.sum(jax.grad(loss)(v) ** 2))(values)


@pytest.mark.parametrize(
    "shape, readers, devices, message",
    [
        ((3, 3, 4, 128), 1, 2, "batch 3 over 2 devices, the nearest is 4"),
        ((3, 2, 4, 60_000), 1, 1, r"width 60000, the widest is \d+"),
        ((3, 2, 4, 4096), 64, 1, r"64 readers of width 4096, the most is \d+"),
    ],
)
def test_the_kernel_names_its_limit(on_tpu, shape, readers, devices, message):
    values = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    queries = jax.ShapeDtypeStruct((readers, shape[-1]), jnp.float32)

    def read(values, queries):
        return depth_read(values, queries, implementation="pallas")

    with on_tpu((devices, 1)):
        with pytest.raises(ReslabError, match=message) as error:
            jax.eval_shape(read, values, queries)
        jax.eval_shape(depth_read, values, queries)  # "auto" never fails.
    assert "\n" not in str(error.value)


def test_bad_input_is_one_line():
    values, queries = jnp.ones((3, 2, 4, 8)), jnp.ones((1, 8))
    for arguments, keywords, message in [
        ((values[0, 0], queries), {}, "values"),
        ((values, queries[0]), {}, "queries"),
        ((values, queries), {"limit": 4}, "1 to 3"),
        ((values, queries), {"implementation": "pallas"}, "platform cpu"),
    ]:
        with pytest.raises(ReslabError, match=message):
            depth_read(*arguments, **keywords)
    weights = jnp.ones((2, 3, 2, 4))
    for arguments, keywords, message in [
        ((values[0, 0], weights), {}, "depth_mix: values"),
        ((values, weights[:, :2]), {}, r"weights: expected \(readers, 3, 2, 4\)"),
        ((values, weights), {"limit": 0}, "1 to 3"),
        ((values, weights), {"implementation": "pallas"}, "platform cpu"),
    ]:
        with pytest.raises(ReslabError, match=message):
            depth_mix(*arguments, **keywords)
