"""Addition and norm on a GPU: the kernel against the definition, lowered, refused."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from reslab.core.errors import ReslabError
from reslab.ops.add_norm import pallas_gpu
from reslab.ops.add_norm.api import add_norm
from reslab.ops.add_norm.reference import NORMS, reference_add_norm


def both_ways(run, arguments, cotangents):
    """What a function returns, and its gradients."""

    def gradients(*arguments):
        outputs, pull = jax.vjp(run, *arguments)
        return outputs, pull(cotangents)

    return jax.jit(gradients)(*arguments)


@pytest.fixture
def on_gpu():
    """The trace of a program for a GPU that is not there."""
    mesh = AbstractMesh(
        (1, 1),
        ("data", "tensor"),
        axis_types=(AxisType.Auto,) * 2,
        abstract_device=AbstractDevice("NVIDIA H200", 1, "gpu"),
    )
    with jax.sharding.use_abstract_mesh(mesh):
        yield


@pytest.mark.parametrize(
    "norm, shape",
    [("rms", (2, 21, 256)), ("layer", (1, 1, 128)), ("seednorm", (3, 7, 256))],
)
def test_the_kernel_equals_the_reference(emulated, monkeypatch, norm, shape):
    # Several tiles for each program, the last not full.
    monkeypatch.setattr(pallas_gpu, "TILE_ELEMENTS", 1024)
    monkeypatch.setattr(pallas_gpu, "PROGRAMS", 2)
    x, update, *cotangents = emulated.arrays([shape] * 4)
    rows = emulated.arrays([shape[-1:]] * len(NORMS[norm][1]), seed=1)
    rows = tuple(1 + 0.2 * row for row in rows)

    def kernel(x, update, rows):
        return pallas_gpu.add_norm(norm, x, update, rows, 1e-6, True)

    def reference(x, update, rows):
        return reference_add_norm(norm, x, update, rows, 1e-6)

    arguments = (x, update, rows), tuple(cotangents)
    got, expected = (both_ways(run, *arguments) for run in (kernel, reference))
    emulated.assert_close(got, expected)


@pytest.mark.parametrize("norm", [name for name in NORMS if name != "derf"])
def test_the_kernel_lowers_for_cuda(on_gpu, norm):
    x = jax.ShapeDtypeStruct((3, 700, 1024), jnp.bfloat16)
    row = jax.ShapeDtypeStruct((1024,), jnp.float32)
    rows = dict.fromkeys(NORMS[norm][1], row)

    def run(x, rows):
        def total(x, rows):
            outputs = add_norm(
                x, x, norm=norm, parameters=rows, implementation="pallas"
            )
            return sum(jnp.sum(output.astype(jnp.float32)) for output in outputs)

        return jax.grad(total, argnums=(0, 1))(x, rows)

    text = jax.jit(run).trace(x, rows).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("xla.gpu.triton") == 2
    assert "add_norm_backward" in text


@pytest.mark.parametrize(
    "norm, width, message",
    [
        ("rms", 200, "width 200, the nearest is 256"),
        ("rms", 50_000, "width 50000, the nearest is 16384"),
        ("derf", 256, "norm 'derf'"),
    ],
)
def test_the_kernel_names_its_limit(on_gpu, norm, width, message):
    x = jax.ShapeDtypeStruct((2, 4, width), jnp.float32)
    known = {"slope": 0.5, "shift": 0.0} if norm == "derf" else {}

    def run(x, implementation):
        return add_norm(
            x, x, norm=norm, parameters=known, implementation=implementation
        )

    with pytest.raises(ReslabError, match=message):
        jax.eval_shape(lambda x: run(x, "pallas"), x)
    jax.eval_shape(lambda x: run(x, "auto"), x)
