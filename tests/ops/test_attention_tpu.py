"""Attention compiled for a TPU that this machine need not have."""

import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from reslab.ops.attention.api import attention
from reslab.ops.attention.shapes import SHAPES

pytestmark = pytest.mark.tpu_compile

ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # else a second process aborts
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_STDERR_LOG_LEVEL": "3",
}


@pytest.fixture(scope="module")
def topology():
    """Gives the devices of a named slice."""
    pytest.importorskip("libtpu")
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    return lambda name: topologies.get_topology_desc(name, "tpu").devices


@pytest.fixture(scope="module")
def devices(topology):
    return topology("v5e:2x2")


def compile_gradient(mesh, shape, implementation="auto", **options):
    """Compiles forward and backward in bfloat16; the text of the program."""
    batch, length, dim = shape["batch"], shape["length"], shape["head_dim"]
    length_axis = "sequence" if "sequence" in mesh.shape else None
    spec = PartitionSpec(("fsdp",), length_axis, ("tensor",), None)
    heads = NamedSharding(mesh, spec)
    rows = NamedSharding(mesh, PartitionSpec(("fsdp",)))

    def argument(count):
        return jax.ShapeDtypeStruct(
            (batch, length, count, dim), jnp.bfloat16, sharding=heads
        )

    def gradient(query, key, value, segments, cotangent):
        def run(*x):
            return attention(
                *x, segments=segments, implementation=implementation, **options
            )

        output, vjp = jax.vjp(run, query, key, value)
        return output, vjp(cotangent)

    query, key = argument(shape["heads"]), argument(shape["kv_heads"])
    segments = jax.ShapeDtypeStruct((batch, length), jnp.int32, sharding=rows)
    with jax.set_mesh(mesh):
        lowered = jax.jit(gradient).lower(query, key, key, segments, query)
        return lowered.compile().as_text()


def mesh_of(devices, fsdp, tensor):
    grid = np.asarray(devices[: fsdp * tensor]).reshape(fsdp, tensor)
    return Mesh(grid, ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)


@pytest.mark.conformance
@pytest.mark.parametrize(
    "parts",
    [pytest.param((1, 1), marks=pytest.mark.conformance), (2, 2)],
    ids=["one", "mesh"],
)
@pytest.mark.parametrize(
    "name", [pytest.param("gpt2_small", marks=pytest.mark.exhaustive), "llama_8b"]
)
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, marks=pytest.mark.conformance),
        {"window": 512, "softcap": 30.0},
    ],
)
def test_splash_compiles(devices, parts, name, options):
    shape = SHAPES[name] | {"batch": 2}
    text = compile_gradient(mesh_of(devices, *parts), shape, **options)
    # Forward, and the two of the backward pass.
    assert text.count('custom_call_target="tpu_custom_call"') == 3
    # Each device works on its own rows and heads.
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in text


@pytest.mark.parametrize(
    "head_dim",
    [
        80,
        256,
        *(pytest.param(d, marks=pytest.mark.conformance) for d in (32, 128, 192)),
    ],
)
def test_splash_compiles_for_every_head_size(devices, head_dim):
    shape = {"batch": 1, "length": 384, "heads": 2, "kv_heads": 1}
    mesh = mesh_of(devices, 1, 1)
    compile_gradient(mesh, shape | {"head_dim": head_dim}, "splash")


@pytest.mark.conformance
@pytest.mark.parametrize("name", ["v5p:2x2x1", "v6e:2x2"])
def test_splash_compiles_for_other_generations(topology, name):
    shape = SHAPES["gpt2_small"] | {"batch": 1}
    compile_gradient(mesh_of(topology(name), 1, 1), shape, "splash")


def test_other_lengths_take_another_path(devices):
    shape = {"batch": 1, "length": 200, "heads": 2, "kv_heads": 1, "head_dim": 64}
    # JAX cannot trace the bfloat16 gradient of its own under strict promotion.
    with jax.numpy_dtype_promotion("standard"):
        text = compile_gradient(mesh_of(devices, 1, 1), shape)
    assert "tpu_custom_call" not in text


@pytest.mark.parametrize("window", [None, 512])
def test_divided_tokens_gather_keys_and_scatter_their_gradients(devices, window):
    shape = {"batch": 1, "length": 2048, "heads": 8, "kv_heads": 1, "head_dim": 128}
    grid = np.asarray(devices).reshape(1, 4, 1)
    mesh = Mesh(grid, ("fsdp", "sequence", "tensor"), axis_types=(AxisType.Auto,) * 3)
    text = compile_gradient(mesh, shape, window=window)
    assert text.count('custom_call_target="tpu_custom_call"') == 3
    assert "all-gather" in text and ("reduce-scatter" in text or "all-reduce" in text)
    # A kernel is given a fourth of the queries and all of the keys.
    calls = [line for line in text.splitlines() if "tpu_custom_call" in line]
    for call in calls:
        assert re.search(r"bf16\[(1,)*8,512,128\]", call), call
        assert re.search(r"bf16\[(1,)*2048,(1,)*128\]", call), call
