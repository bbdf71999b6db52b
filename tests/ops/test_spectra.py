"""Singular values without a decomposition, as TPUs take them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.ops.spectra import bisected_singular_values, singular_values
from reslab.parallel.aot.program import compile_program

RNG = np.random.default_rng(0)
MATRICES = {
    "wide": RNG.standard_normal((12, 20)),
    "tall": RNG.standard_normal((20, 12)),
    "over six decades": RNG.standard_normal((12, 12)) * np.geomspace(1e-6, 1, 12),
    "equal": np.eye(6),
    "of rank one": np.ones((6, 4)),
    "beginning with zeros": np.pad(RNG.standard_normal((5, 7)), ((2, 0), (1, 1))),
    "zeros": np.zeros((5, 7)),
    "a row": RNG.standard_normal((1, 5)),
    "a column": RNG.standard_normal((5, 1)),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", MATRICES)
def test_bisected_values_are_those_of_a_decomposition(name, dtype):
    matrix = MATRICES[name]
    wanted = np.linalg.svd(matrix, compute_uv=False)
    with jax.enable_x64(dtype == np.float64):
        found = jax.jit(bisected_singular_values)(matrix.astype(dtype))
    assert found.dtype == dtype and found.shape == wanted.shape
    allowed = 8 * np.finfo(dtype).eps * np.max(wanted, initial=0.0)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=allowed)


@pytest.mark.tpu_compile
def test_a_tpu_compiles_them_in_little_memory():
    pytest.importorskip("libtpu")
    from reslab.parallel.aot.topology import topology
    from reslab.parallel.mesh import make_mesh, use_mesh

    mesh = make_mesh({"data": 1, "fsdp": 4}, topology("v5e:2x2").devices)
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    stack = jax.ShapeDtypeStruct((6, 256, 512), jnp.float32, sharding=everywhere)
    with use_mesh(mesh):
        program = compile_program(jax.jit(singular_values).lower(stack))
    assert program.memory.temporaries < 2 * 6 * 256 * 512 * 4
