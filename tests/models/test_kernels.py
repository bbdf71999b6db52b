"""Whole models with kernels, emulated: the same losses and gradients as without."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reslab.core import config as configs
from reslab.core.errors import ReslabError
from reslab.core.trees import unbox
from reslab.models.lm import LanguageModel
from reslab.ops import tiles
from reslab.ops.depth_attention import mix_tpu, pallas_tpu, rows_tpu
from reslab.ops.stream_mix import pallas_tpu as stream_tpu
from reslab.parallel.mesh import make_mesh
from reslab.train.compiled import compile_configs
from reslab.train.state import make_setup

exhaustive = pytest.mark.exhaustive
RESIDUALS = [
    "attnres(block=3)",
    pytest.param("attnres", marks=exhaustive),
    pytest.param("delta_attnres", marks=exhaustive),
    pytest.param("delta_attnres(block=2, gate='scalar')", marks=exhaustive),
    pytest.param("mudd", marks=pytest.mark.conformance),
    pytest.param("denseformer(dilation=2)", marks=exhaustive),
    pytest.param("elc_bert(form='weighted_output')", marks=exhaustive),
    "hyper(streams=2)",
    pytest.param("hyper(streams=2, is_dynamic=True)", marks=exhaustive),
    pytest.param("mhc(streams=2)", marks=exhaustive),
    pytest.param("mhc_lite(streams=3)", marks=exhaustive),
]


@pytest.fixture
def emulated_kernels(monkeypatch):
    """Lets models run the kernels here."""
    taken = []

    def emulate(module, name):
        kernel = functools.partial(getattr(module, name), interpret=True)

        def run(*arguments):
            taken.append(name)
            return kernel(*arguments)

        monkeypatch.setattr(module, name, run)

    monkeypatch.setattr(tiles, "platform", lambda: "tpu")
    emulate(pallas_tpu, "read")
    emulate(pallas_tpu, "read_through")
    emulate(mix_tpu, "mix")
    emulate(mix_tpu, "mix_through")
    emulate(stream_tpu, "stream_mix")
    monkeypatch.setattr(rows_tpu, "LARGEST_WHOLE", 2)
    monkeypatch.setattr(rows_tpu, "LARGEST_CHUNK", 2)
    return taken


@pytest.mark.conformance
@pytest.mark.parametrize("residual", RESIDUALS)
def test_a_model_is_the_same_with_kernels(emulated_kernels, residual):
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 11, (2, 6)), jnp.int32)

    def make(kernels, dtype=jnp.float32):
        return LanguageModel(
            vocabulary_size=11,
            features=16,
            depth=2,
            mixer="attention(heads=2)",
            residual=residual,
            kernels=kernels,
            dtype=dtype,
        )

    shapes = jax.eval_shape(make("reference").init, jax.random.key(0), tokens)
    rng = np.random.default_rng(1)
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype),
        unbox(shapes),
    )

    def loss(kernels, dtype=jnp.float32):
        def total(variables):
            arguments = variables, tokens, tokens
            losses, _ = make(kernels, dtype).apply(*arguments, method="losses")
            return jnp.sum(losses)

        given = jax.tree.map(lambda leaf: leaf.astype(dtype), variables)
        return jax.tree.leaves(jax.jit(jax.value_and_grad(total))(given))

    assert not emulated_kernels
    expected = loss("reference")
    with jax.enable_x64(True):
        exact = loss("reference", jnp.float64)
    assert not emulated_kernels
    got = loss("pallas")
    assert emulated_kernels
    for one, other, true in zip(got, expected, exact, strict=True):
        scale = max(float(np.max(np.abs(true))), 1e-3)
        # Sums that nearly cancel are rounded by more, however they are computed.
        rounding = float(np.max(np.abs(np.float64(other) - np.float64(true))))
        tolerance = max(1e-5 * scale, 3 * rounding)
        np.testing.assert_allclose(one, true, atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    "kernels, message",
    [("pallas", "model.kernels: expected a TPU"), ("palas", "auto, reference, pallas")],
)
def test_kernels_that_cannot_be_are_refused_first(kernels, message):
    config = configs.update(configs.load("base"), [("model.kernels", kernels)])
    with pytest.raises(ReslabError, match=message):
        make_setup(config, make_mesh(config.mesh, jax.devices()[:1]))


@pytest.mark.tpu_compile
@pytest.mark.conformance
@pytest.mark.parametrize(
    "slice_name, devices", [("v5e:4x4", 16), ("v6e:4x4", 16), ("v5p:4x4x4", 64)]
)
def test_a_sharded_training_step_compiles_with_kernels(slice_name, devices):
    pytest.importorskip("libtpu")
    changes = {
        "model.features": 256,
        "model.depth": 3,
        "model.mixer": "attention(heads=2)",
        "model.residual": "attnres",
        "model.kernels": "pallas",
        "model.vocabulary_multiple": 128,
        "data.length": 128,
        "data.batch": devices,
        "mesh.data": 4,  # As chips are wired.
        "mesh.fsdp": -1,
    }
    config = configs.update(configs.load("base"), changes.items())
    (report,) = compile_configs({"kernels": config}, slice_name)
    assert report.is_fitting
    # Not every jaxlib can read what every libtpu wrote.
    if report.cost is not None:
        # Forward, again in the backward pass, and backward; the last reading once.
        reads = report.cost.by_kernel  # By the names that a profile shows.
        assert reads["depth_read"].count == 2 * 3 + 1
        assert reads["depth_read_backward"].count == 3 + 1
