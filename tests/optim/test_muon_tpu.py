"""Muon's update compiled for an absent TPU: whole matrices are dealt to devices."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from reslab.core.layout import read
from reslab.optim.muon import MuonState, scale_by_muon
from reslab.parallel.aot.cost import Machine, program_cost
from reslab.parallel.aot.program import compile_program
from reslab.parallel.aot.topology import topology
from reslab.parallel.mesh import make_mesh, use_mesh

LAYERS, WIDTH = 24, 1024
AXES = {
    "query": (("layers", "embed", "heads", "head_dim"), (LAYERS, WIDTH, 8, 128)),
    "output": (("layers", "heads", "head_dim", "embed"), (LAYERS, 8, 128, WIDTH)),
    "up": (("layers", "embed", "mlp"), (LAYERS, WIDTH, 4 * WIDTH)),
    "down": (("layers", "mlp", "embed"), (LAYERS, 4 * WIDTH, WIDTH)),
}


@pytest.mark.conformance
@pytest.mark.tpu_compile
def test_orthogonalization_is_dealt_out_by_all_to_all():
    pytest.importorskip("libtpu")
    target = topology("v5e:4x4")
    mesh = make_mesh({"data": 1, "fsdp": 16, "tensor": 1}, target.devices)
    params = {
        name: jax.ShapeDtypeStruct(
            shape,
            jnp.float32,
            sharding=NamedSharding(
                mesh,
                PartitionSpec(*("fsdp" if a == "embed" else None for a in names)),
            ),
        )
        for name, (names, shape) in AXES.items()
    }
    layouts = {name: read(names) for name, (names, _) in AXES.items()}
    made = scale_by_muon(layouts=layouts)

    def step(gradients, state, params):
        updates, state = made.update(gradients, state, params)
        moved = jax.tree.map(lambda p, u: p - 0.01 * u, params, updates)
        return moved, state

    shardings = jax.tree.map(lambda leaf: leaf.sharding, params)
    with use_mesh(mesh):
        state = MuonState(params)
        compiled = compile_program(
            jax.jit(step, out_shardings=(shardings, None), donate_argnums=(1, 2)).lower(
                params, state, params
            )
        )
    assert compiled.text is not None
    cost = program_cost(compiled.text, Machine(target.chip))
    found = cost.collectives
    assert "all-gather" not in found
    # There and back in bfloat16, one share of all kernels each.
    kernels = LAYERS * (2 + 8) * WIDTH**2
    assert found["all-to-all"].bytes == pytest.approx(2 * 2 * kernels / 16, rel=0.05)
    assert sum(traffic.bytes for traffic in found.values()) < 150e6
