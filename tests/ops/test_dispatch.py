"""Tokens sent to experts over a mesh: equal to one device, by all-to-all alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core.losses import LOSSES, total_loss
from reslab.core.parameters import logical_axes
from reslab.core.trees import unbox
from reslab.nn.ffns.experts import Experts
from reslab.parallel.aot.cost import Machine, program_cost
from reslab.parallel.aot.program import compile_program
from reslab.parallel.aot.topology import topology
from reslab.parallel.mesh import batch_sharding, make_mesh, tree_sharding, use_mesh

MESHES = [
    {"data": 1, "expert": 8},
    {"data": 2, "expert": 4},
    {"data": 1, "fsdp": 2, "expert": 2, "tensor": 2},
    {"data": 2, "expert": 2, "sequence": 2},
    {"data": 4, "fsdp": 2},
]


def _loss(layer, params, x):
    y, written = layer.apply({"params": params}, x, mutable=[LOSSES])
    return jnp.sum(jnp.sin(y.astype(jnp.float32))) + total_loss(written)


@pytest.mark.parametrize("shape", MESHES, ids=str)
@pytest.mark.parametrize("fields", [{}, {"capacity": 1.0, "chosen": 3}], ids=str)
def test_a_mesh_gives_what_one_device_gives(shape, fields):
    layer = Experts(experts=8, hidden=16, z_loss=0.1, shared_hidden=4, **fields)
    x = jax.random.normal(jax.random.key(0), (8, 6, 12))
    params = unbox(layer.init(jax.random.key(1), x))["params"]
    # Most tokens ask one expert: devices receive very different numbers.
    params["router"]["kernel"] = params["router"]["kernel"].at[:, 3].add(2.0)
    step = jax.value_and_grad(lambda params, x: _loss(layer, params, x), (0, 1))
    loss, slopes = jax.jit(step)(params, x)
    with use_mesh(make_mesh(shape)):
        found, own = jax.jit(step)(params, x)
    np.testing.assert_allclose(found, loss, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), own, slopes
    )


@pytest.mark.parametrize("shape", [{"data": 2, "expert": 4}, {"data": 2, "fsdp": 4}])
@pytest.mark.parametrize("capacity", [0.0, 1.0])
def test_in_bfloat16_slopes_are_added_up_over_devices(shape, capacity):
    layer = Experts(experts=4, hidden=8, capacity=capacity, dtype=jnp.bfloat16)
    x = jax.random.normal(jax.random.key(0), (8, 4, 8), jnp.bfloat16)
    params = unbox(layer.init(jax.random.key(1), x))["params"]
    step = jax.jit(jax.grad(lambda params: _loss(layer, params, x)))
    alone = step(params)
    with use_mesh(make_mesh(shape)):
        found = step(params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0.05, atol=0.05),
        found,
        alone,
    )


@pytest.mark.parametrize("capacity", [0.0, 1.0])
def test_rows_that_the_devices_do_not_share_evenly(capacity):
    layer = Experts(experts=8, hidden=16, capacity=capacity)
    x = jax.random.normal(jax.random.key(0), (3, 5, 12))
    params = unbox(layer.init(jax.random.key(1), x))["params"]
    alone = _loss(layer, params, x)
    with use_mesh(make_mesh({"data": 2, "expert": 4})):
        found = jax.jit(lambda params, x: _loss(layer, params, x))(params, x)
    np.testing.assert_allclose(found, alone, rtol=1e-5)


@pytest.mark.conformance
@pytest.mark.tpu_compile
@pytest.mark.parametrize("capacity", [0.0, 1.0])
def test_on_a_tpu_tokens_cross_the_axis_and_matrices_do_not(capacity):
    pytest.importorskip("libtpu")
    target = topology("v5e:2x4")
    mesh = make_mesh({"data": 1, "expert": 8}, target.devices)
    layer = Experts(experts=16, hidden=512, capacity=capacity, dtype=jnp.bfloat16)
    shape = (8, 128, 256)

    def step(params, x):
        return jax.grad(lambda *both: _loss(layer, *both), (0, 1))(params, x)

    with use_mesh(mesh), logical_axes():
        boxed = jax.eval_shape(lambda: layer.init(jax.random.key(0), jnp.zeros(shape)))[
            "params"
        ]
        shardings = tree_sharding(boxed, mesh)
        params = jax.tree.map(
            lambda a, to: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=to),
            unbox(boxed),
            shardings,
        )
        batch = batch_sharding(mesh)
        x = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=batch)
        program = compile_program(
            jax.jit(step, out_shardings=(shardings, batch)).lower(params, x)
        )
    assert program.text is not None
    found = program_cost(program.text, Machine(target.chip)).collectives
    tokens = 128 * 256 * 2  # Bytes of a device.
    moved = sum(t.bytes for kind, t in found.items() if "all-to-all" in kind)
    assert moved > 4 * tokens  # To experts and back, twice.
    # All else is less than one matrix of one expert.
    others = [t.bytes for kind, t in found.items() if "all-to-all" not in kind]
    assert sum(others) < 256 * 512 * 2, found
    assert ("tpu_custom_call" in program.text) == (not capacity)
