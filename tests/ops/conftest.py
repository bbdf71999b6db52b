"""Kernels on a machine without a TPU: memory that is poisoned, races that are found."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

# Largest difference over the largest number. A bfloat16 result may round to its other
# neighbour; gradients are sums of what was rounded.
TOLERANCE = {"float32": 1e-5, "bfloat16": 2**-7}


def _arrays(shapes, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=s), jnp.float32).astype(dtype) for s in shapes]


def _assert_close(got, expected, dtype="float32"):
    leaves = zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True)
    for one, other in leaves:
        assert one.shape == other.shape and one.dtype == other.dtype
        wide = np.asarray(other, np.float32)
        difference = np.abs(np.asarray(one, np.float32) - wide).max()
        assert difference <= TOLERANCE[dtype] * max(np.abs(wide).max(), 1e-3)


@pytest.fixture
def emulated():
    """How to emulate a kernel, arrays for it, and how to compare; finds races."""
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call
    from jax.experimental.pallas import tpu as pltpu

    interpret = pltpu.InterpretParams(uninitialized_memory="nan", detect_races=True)
    yield types.SimpleNamespace(
        interpret=interpret, arrays=_arrays, assert_close=_assert_close
    )
    races = interpret_pallas_call.races
    assert races is None or not races.races_found


@pytest.fixture
def on_tpu():
    """The trace of a program for a TPU that is not there."""
    from jax.sharding import AbstractDevice, AbstractMesh, AxisType

    def mesh(sizes=(1, 1)):
        return jax.sharding.use_abstract_mesh(
            AbstractMesh(
                sizes,
                ("data", "tensor"),
                axis_types=(AxisType.Auto,) * 2,
                abstract_device=AbstractDevice("TPU v5 lite", 1, "tpu"),
            )
        )

    return mesh
