"""Presets for whole slices: what lies where, and what passes between the chips."""

import math

import jax
import numpy as np
import pytest

from reslab.commands.costs import table
from reslab.core import config as configs
from reslab.core.trees import count_parameters, named_leaves
from reslab.parallel.aot.estimate import bandwidth
from reslab.parallel.aot.topology import CHIPS, topology
from reslab.parallel.mesh import device_bytes, make_mesh
from reslab.train.compiled import compile_configs
from reslab.train.state import check_batch, make_setup

pytestmark = pytest.mark.tpu_compile

PODS = {
    "pod_1b": ("v5e:4x8", 1.3e9),
    "pod_1b_attention_residuals": ("v5e:4x8", 1.3e9),
    "pod_1b_gated_delta": ("v5e:4x8", 1.5e9),
    "pod_8b": ("v5p:8x8x4", 8.0e9),
    "pod_16b": ("v5e:16x16", 15.8e9),
    "pod_16b_experts": ("v5e:4x8", 16.0e9),
}
# The same programs, small enough to be compiled in seconds: libtpu takes minutes for
# the sines of rotary positions.
REDUCED = {
    "model.position": "none",
    "model.features": 512,
    "model.depth": 2,
    "model.vocabulary_multiple": 1024,
    "data.length": 512,
    "data.batch": 16,
    "eval.batch": 16,
}


@pytest.fixture(autouse=True)
def has_libtpu():
    pytest.importorskip("libtpu")


def test_every_preset_for_a_pod_is_here():
    found = {p.stem for folder in configs.folders() for p in folder.glob("pod_*.py")}
    assert found == set(PODS)


def test_names_say_what_presets_have():
    """Of those that are for no pod; the others are compared below."""
    named = "*_[0-9]*m.py"
    found = {p.stem for folder in configs.folders() for p in folder.glob(named)}
    assert found == {"small_85m"}
    for name in found:
        setup = make_setup(configs.load(name), make_mesh({}, jax.devices()[:1]))
        parameters = count_parameters(setup.shapes.params)
        assert parameters == pytest.approx(1e6 * int(name[6:-1]), rel=0.05)


@pytest.mark.parametrize("name", PODS)
def test_nothing_is_on_every_device_that_could_be_divided(name):
    slice_name, parameters = PODS[name]
    config, target = configs.load(name), topology(slice_name)
    configs.check(config)
    mesh = make_mesh(config.mesh, target.devices)
    check_batch(config, mesh)
    setup = make_setup(config, mesh)
    assert count_parameters(setup.shapes.params) == pytest.approx(parameters, rel=0.05)
    # Parameters and both moments of AdamW, in float32, each in one place; but for the
    # taps of convolutions, 1% of a device's share in pod_1b_gated_delta.
    whole = sum(
        leaf.size * leaf.dtype.itemsize for leaf in named_leaves(setup.shapes).values()
    )
    assert device_bytes(setup.shapes) <= 1.02 * whole / len(target.devices)
    for path, leaf in named_leaves(setup.shapes.params).items():
        parts = leaf.size // math.prod(leaf.sharding.shard_shape(leaf.shape))
        is_matrix = path.endswith(("kernel", "kernels", "embedding", "head"))
        assert parts == len(target.devices) or not is_matrix, path


def reduced(name, slice_name, **changes):
    """Compiles a preset, smaller, on a small slice."""
    fields = {key.replace("__", "."): value for key, value in changes.items()}
    config = configs.update(configs.load(name), (REDUCED | fields).items())
    (report,) = compile_configs({name: config}, slice_name)
    return report


def by_axes(report, *kinds):
    return {
        wire.axes: traffic.bytes
        for wire, traffic in report.cost.wires.items()
        if wire.kind in kinds
    }


@pytest.mark.conformance
def test_evaluation_gathers_each_weight_whole():
    config = configs.update(configs.load("pod_1b"), REDUCED.items())
    (report,) = compile_configs({"pod_1b": config}, "v5e:2x4", work="eval")
    # Shards that are passed around would be permuted.
    assert {wire.kind for wire in report.cost.wires} == {
        *("all-gather", "all-reduce", "all-to-all")
    }


@pytest.mark.exhaustive  # A minute of compiling.
def test_fsdp_and_tensor_on_v5p():
    """Its text is read, too: as the compiler wrote it, where jaxlib cannot."""
    report = reduced(
        "pod_8b",
        "v5p:2x2x2",
        model__mixer="attention(heads=4, kv_heads=4)",
        model__ffn="swiglu(hidden=2048)",
        mesh__tensor=4,
    )
    assert report.is_fitting and report.mesh == {"data": 1, "fsdp": 2, "tensor": 4}
    wires = {wire.axes for wire in report.cost.wires}
    assert ("fsdp",) in wires and ("tensor",) in wires
    # A layer's activations are added up over tensor: twice forward, twice backward,
    # and once more where the forward pass is computed again.
    rows = 2 * 16 // 2 * 512 * 512
    found = by_axes(report, "all-reduce", "reduce-scatter", "all-gather")
    assert found["tensor",] >= 2 * 4 * rows
    exposed, hidden = report.estimated_mfu
    assert 0 < exposed <= hidden < 1
    assert "over fsdp" in table([report], "v5p:2x2x2")


@pytest.mark.exhaustive  # A minute of compiling.
def test_slices_send_each_other_gradients():
    """Each device its share: of matrices in bfloat16, of the embedding in float32."""
    on = {"mesh.data": 2, "mesh.dcn_data": 2, "mesh.fsdp": 8}
    on["model.mixer"] = "attention(heads=4)"  # Narrower heads are sent padded.
    report = reduced("pod_1b", "2xv5e:2x4", **on)
    config = configs.update(configs.load("pod_1b"), (REDUCED | on).items())
    mesh = make_mesh(config.mesh, topology("2xv5e:2x4").devices)
    sizes = {
        k: a.size
        for k, a in named_leaves(make_setup(config, mesh).shapes.params).items()
    }
    embedding = sum(size for name, size in sizes.items() if "embedding" in name)
    matrices = sum(
        size for name, size in sizes.items() if name.endswith(("kernel", "head"))
    )
    shared = by_axes(report, "all-reduce")["data",]
    assert shared == pytest.approx((2 * matrices + 4 * embedding) / 8, rel=0.02)


def test_links():
    """As many as lie along the axes, twice that in a ring; slices have a network."""
    chip, whole = CHIPS["v5e"], topology("v5e:16x16")
    mesh = make_mesh({"fsdp": 256}, whole.devices)
    assert bandwidth(mesh, chip, ("fsdp",)) == 4 * chip.link
    mesh = make_mesh({"fsdp": 16, "tensor": 16}, whole.devices)
    assert bandwidth(mesh, chip, ("tensor",)) == 2 * chip.link
    assert bandwidth(mesh, chip, ()) == chip.link  # Where it cannot be said.
    mesh = make_mesh({"fsdp": 32}, topology("v5e:4x8").devices)
    assert bandwidth(mesh, chip, ("fsdp",)) == 2 * chip.link
    mesh = make_mesh(
        {"data": 2, "fsdp": 4, "dcn_data": 2}, topology("2xv5e:2x2").devices
    )
    assert bandwidth(mesh, chip, ("data",)) == chip.network
    assert bandwidth(mesh, chip, ("fsdp",)) == 2 * chip.link
    assert {d.slice_index for d in mesh.devices[1].flat} == {1}
    assert np.size(mesh.devices) == 8
