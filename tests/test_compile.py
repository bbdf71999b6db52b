"""`reslab compile`: the training step for an absent TPU, against counts by hand."""

import json
import re

import jax
import jax.numpy as jnp
import pytest

from reslab.commands.costs import Measured, as_json, table
from reslab.core import config as configs
from reslab.core.errors import ReslabError
from reslab.models.cost import training_flops_per_token
from reslab.parallel.aot import program, topology
from reslab.parallel.mesh import make_mesh, use_mesh
from reslab.train import compiled as costs
from reslab.train.compiled import compile_configs, plain_flops
from reslab.train.state import make_setup
from reslab.train.step import jit_step


def tpu_compile(test):
    """Programs for absent TPUs are of no variant, and take a minute together."""
    return pytest.mark.tpu_compile(pytest.mark.conformance(test))


SLICE = "v5e:2x2"
WIDTH, HIDDEN, DEPTH, BATCH, LENGTH, VOCABULARY = 256, 704, 2, 8, 128, 384
TOKENS = BATCH * LENGTH
KERNELS = 4 * WIDTH * WIDTH + 3 * WIDTH * HIDDEN  # Of one layer.
SMALL = {
    "model.features": WIDTH,
    "model.depth": DEPTH,
    # Heads as wide as a tile: narrower ones are padded in memory, and XLA lays
    # out their gradients so that it reduces some of them without scattering.
    "model.mixer": "attention(heads=2)",
    "model.vocabulary_multiple": 128,
    "data.length": LENGTH,
    "data.batch": BATCH,
}


def small(**changes):
    fields = {key.replace("__", "."): value for key, value in changes.items()}
    return configs.update(configs.load("base"), (SMALL | fields).items())


def setup_on_cpu(config):
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    return make_setup(config, mesh)


@pytest.fixture(scope="module")
def reports():
    """Three ways to use four chips, compiled once."""
    pytest.importorskip("libtpu")
    told = []
    named = {
        "fsdp": small(mesh__data=1, mesh__fsdp=-1),
        "tensor": small(
            mesh__data=1, mesh__tensor=-1, model__mixer="attention(heads=4)"
        ),
        "remat": small(model__remat="full"),
    }
    found = compile_configs(named, SLICE, told.append)
    assert told == [f"compiling {name} for {SLICE} ..." for name in named]
    return {one.name: one for one in found}


# FLOPs.


def recomputed(remat):
    """FLOPs per token that are computed again."""
    attention = 4 * LENGTH * WIDTH * DEPTH  # All keys.
    if remat == "full":
        # All but the layer's last product, which no gradient asks for.
        return attention + 2 * DEPTH * (KERNELS - HIDDEN * WIDTH)
    # The products of activations with activations are not kept as "dots".
    return attention if remat == "dots" else 0


@pytest.mark.parametrize(
    "accumulate, remat, layers",
    [
        (1, "none", "scan"),
        (2, "dots", "scan"),
        (1, "full", "scan"),
        (2, "full", "unroll"),
    ],
)
def test_flops_are_the_closed_form(accumulate, remat, layers):
    config = small(train__accumulate=accumulate, model__remat=remat, model__loop=layers)
    setup = setup_on_cpu(config)
    per_token = training_flops_per_token(setup.model, setup.shapes.params, LENGTH)
    expected = TOKENS * (per_token + recomputed(remat))
    assert plain_flops(setup) == expected


@tpu_compile
def test_flops_are_those_of_one_device(reports):
    forward = 2 * (DEPTH * KERNELS + WIDTH * VOCABULARY)
    forward += 4 * LENGTH * WIDTH * DEPTH
    for name, remat in (("fsdp", "none"), ("tensor", "none"), ("remat", "full")):
        again = recomputed(remat)
        assert reports[name].model_flops == 3 * forward * TOKENS / 4
        assert reports[name].counted_flops == (3 * forward + again) * TOKENS / 4


# Collectives. All figures are those of one device, in bytes of the whole array.


@tpu_compile
def test_collectives_of_fsdp(reports):
    """Kernels are gathered for each pass, gradients reduced into shares."""
    found = reports["fsdp"].cost.collectives
    kernels = 2 * DEPTH * KERNELS  # In bfloat16.
    head = WIDTH * VOCABULARY
    # The backward pass gathers the layers again; the head, outside the loop, is
    # kept from the forward pass. Token ids are gathered too: see below.
    gathered = 2 * kernels + 2 * head + 4 * TOKENS
    assert found["all-gather"].bytes == pytest.approx(gathered, rel=0.1)
    # Gradients of layers are reduced in bfloat16, before their cast; that of the
    # head is made and reduced in float32.
    reduced = kernels + 4 * head
    assert found["reduce-scatter"].bytes == pytest.approx(reduced, rel=0.1)
    # The embedding is split along its features. Instead of gathering it, each
    # device looks up its features of all tokens and hands them to their owners;
    # their gradients come back the same way.
    looked_up = 2 * 2 * TOKENS / 4 * WIDTH
    assert found["all-to-all"].bytes == pytest.approx(looked_up, rel=0.1)
    # Gains of norms, and scalars: nothing beside the others.
    assert found["all-reduce"].bytes < 0.01 * gathered
    assert set(found) == {"all-gather", "reduce-scatter", "all-to-all", "all-reduce"}


@tpu_compile
def test_collectives_of_tensor(reports):
    """Two all-reduces of activations a layer forward, and two backward."""
    found = reports["tensor"].cost.collectives
    activations = TOKENS * WIDTH
    layers = DEPTH * 4 * 2 * activations
    # Rows of the embedding lie on one device each: those found are added up. The
    # gradient through the head is added up in float32.
    ends = 2 * activations + 4 * activations
    assert set(found) == {"all-reduce"}
    assert found["all-reduce"].bytes == pytest.approx(layers + ends, rel=0.1)


@tpu_compile
def test_data_parallelism_reduces_every_gradient_once(reports):
    found = reports["remat"].cost.collectives
    one = 4 * reports["remat"].parameters
    # Gradients of kernels may be reduced in bfloat16, before their cast.
    assert one / 2 < sum(traffic.bytes for traffic in found.values()) < 1.1 * one


# Memory and what else there is.


@tpu_compile
def test_memory_is_xlas_own(reports):
    report = reports["fsdp"]
    config = small(mesh__data=1, mesh__fsdp=-1)
    mesh = make_mesh(config.mesh, topology.topology(SLICE).devices)
    setup = make_setup(config, mesh)
    kinds = ("tokens", "targets", "segment_ids", "positions", "sizes")
    batch = {kind: jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32) for kind in kinds}
    batch["loss_mask"] = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.bool_)
    with use_mesh(mesh):
        step = jit_step(setup)
        stats = step.lower(setup.shapes, batch).compile().memory_analysis()
    memory = report.memory
    assert memory.arguments == stats.argument_size_in_bytes
    assert memory.outputs == stats.output_size_in_bytes
    assert memory.aliased == stats.alias_size_in_bytes
    assert memory.temporaries == stats.temp_size_in_bytes
    assert report.needed == memory.peak
    # The state is split in four, and stays where it is.
    state = 3 * 4 * report.parameters / 4
    assert state <= memory.aliased <= memory.arguments < 1.1 * state
    assert report.is_fitting and report.verdict == "fits"


@tpu_compile
def test_kernels_are_run_as_often_as_there_are_layers(reports):
    # Forward and two backward; the forward once more when it is computed again.
    assert reports["fsdp"].cost.kernels.count == 3 * DEPTH
    assert reports["remat"].cost.kernels.count == 4 * DEPTH


@tpu_compile
def test_the_estimate_is_no_less_than_the_peak_allows(reports):
    for one in reports.values():
        traffic = one.cost.hbm_bytes / 819e9
        assert one.estimated_seconds > one.counted_flops / 197e12
        assert 0.1 * traffic < one.estimated_seconds < 1
        assert one.cost.unknown_loops == 0
        assert 0 < one.compile_seconds < 300


@tpu_compile
@pytest.mark.parametrize(
    "name, is_readable",
    [
        pytest.param("v4:1x1x1", True, marks=pytest.mark.conformance),
        pytest.param("v5p:1x1x1", True, marks=pytest.mark.conformance),
        ("v6e:1x1", False),
    ],
)
def test_other_generations(monkeypatch, name, is_readable):
    """Some programs cannot be read by this jaxlib; here, one of each."""
    pytest.importorskip("libtpu")
    if not is_readable:
        monkeypatch.setattr(program, "_text", lambda *_: None)
    config = small(
        model__features=128, model__depth=1, model__mixer="attention(heads=1)"
    )
    (report,) = compile_configs({"one": config}, name)
    chip = topology.CHIPS[name.partition(":")[0]]
    assert report.memory.peak == report.needed < report.available == chip.hbm_bytes
    assert report.counted_flops > 0
    lines = table([report], name).splitlines()
    unread = [line.split("  ")[0] for line in lines if "unreadable" in line]
    if is_readable:
        assert report.cost.kernels.count == 3 and not report.cost.collectives
        assert not unread
    else:
        assert report.cost is report.estimated_seconds is None
        assert {"HBM traffic", "estimated step, ratio"} <= set(unread)
    assert any(line.split() == ["mesh", "one", "device"] for line in lines)


@tpu_compile
@pytest.mark.parametrize("work", ["eval", "generate"])
def test_other_work_than_training(work):
    pytest.importorskip("libtpu")
    config = small(mesh__data=1, mesh__fsdp=-1, eval__batch=BATCH)
    (report,) = compile_configs({"small": config}, SLICE, work=work)
    forward = 2 * (DEPTH * KERNELS + WIDTH * VOCABULARY) + 4 * LENGTH * WIDTH * DEPTH
    assert report.counted_flops == report.model_flops
    if work == "eval":
        assert report.model_flops == forward * TOKENS / 4
    assert report.is_fitting and report.memory.aliased == 0
    # Parameters alone, each in one place.
    assert report.state == 4 * report.parameters / 4
    assert report.state <= report.memory.arguments < 1.1 * report.state
    heading = {"eval": "evaluation", "generate": "generation"}[work]
    assert table([report], SLICE).splitlines()[0].split("  ")[0].endswith(heading)


def test_what_would_fit_is_found_by_compiling(monkeypatch):
    """The remedies one after the other, each in addition to those before."""
    pytest.importorskip("libtpu")
    compiled = []

    def stub(name, setup, target, work):
        config = setup.config
        compiled.append((config.model.remat, config.train.accumulate))
        is_enough = config.train.accumulate == 2
        return costs.Report(
            *(name, work, dict(setup.mesh.shape), 1, 1 if is_enough else 9, 5, (), 1),
            *(1.0, 1.0, 1.0),
        )

    monkeypatch.setattr(costs, "_report", stub)
    config = small(mesh__data=1, mesh__fsdp=-1)
    told = []
    first, last = compile_configs({"one": config}, SLICE, told.append, is_fitting=True)
    assert compiled == [("none", 1), ("full", 1), ("full", 2)]
    assert not first.is_fitting and last.is_fitting
    assert last.name == "one, model.remat=full train.accumulate=2"
    assert len(told) == 3 and config.train.accumulate == 1
    (only,) = compile_configs(
        {"one": small(data__batch=4, model__remat="full", mesh__fsdp=-1, mesh__data=1)},
        SLICE,
        is_fitting=True,
    )
    assert not only.is_fitting


# What people see.


@tpu_compile
def test_table(reports):
    lines = table(list(reports.values()), SLICE).splitlines()
    cells = [re.split("  +", line.strip()) for line in lines]
    rows = {title: values for title, *values in cells}
    assert lines[0].split() == ["v5e:2x2,", "4", "devices", *reports, "origin"]
    assert rows["peak"][-1] == rows["HBM traffic"][-1] == "compiled"
    assert (
        rows["estimated MFU"][-1] == rows["estimated step"][-1] == "compiled estimate"
    )
    assert rows["mesh"] == ["fsdp=4", "tensor=4", "data=4"]
    assert rows["ratio"][:2] == ["1.000", "1.000"] and float(rows["ratio"][2]) > 1.2
    assert rows["estimated step, ratio"][0] == "1.00"
    assert "all-to-all over fsdp" in rows and rows["share"][0].endswith("%")
    assert rows["all-reduce over tensor"][0] == "0 B in 0"
    assert re.fullmatch(r"0\.\d\d to 0\.\d\d", rows["estimated MFU"][0])
    assert "does not fit" not in "".join(lines)
    assert len({len(line) for line in lines[: lines.index("")]}) == 1  # Aligned.
    measured = {"fsdp": Measured(0.25, "0.41", "4 x TPU v5 lite")}
    text = table(list(reports.values()), SLICE, measured, has_notes=False)
    cells = [re.split("  +", line.strip()) for line in text.splitlines()]
    assert ["step of the run", "250.00 ms", "-", "-", "measured"] in cells
    assert ["MFU of the run", "0.41", "-", "-", "measured"] in cells
    assert "nothing was run" not in text


@tpu_compile
def test_json(reports):
    body = json.loads(as_json(list(reports.values()), SLICE))
    assert body["topology"] == SLICE and body["versions"]["libtpu"]
    fsdp = body["programs"][0]
    report = reports["fsdp"]
    assert fsdp["name"] == "fsdp" and fsdp["mesh"]["fsdp"] == 4
    assert fsdp["memory"]["peak"] == report.memory.peak
    assert fsdp["counted_flops"] == report.counted_flops
    gathers = report.cost.collectives["all-gather"]
    assert fsdp["cost"]["collectives"]["all-gather"] == {
        "count": gathers.count,
        "bytes": gathers.bytes,
    }
    assert {
        "kind": "all-gather",
        "axes": ["fsdp"],
        "devices": 4,
        "count": gathers.count,
        "bytes": gathers.bytes,
    } in fsdp["cost"]["wires"]
    assert fsdp["estimated_mfu"] == list(report.estimated_mfu)
    assert "seconds" not in fsdp["cost"]
    assert fsdp["estimated_seconds"] == report.estimated_seconds
    assert any("an estimate" in note for note in body["notes"])


@tpu_compile
def test_what_does_not_fit_is_told(reports):
    config = small(data__length=8192, data__batch=1024, mesh__data=1, mesh__fsdp=-1)
    (report,) = compile_configs({"large": config}, SLICE)
    assert not report.is_fitting
    assert report.memory is report.cost is report.estimated_seconds is None
    assert report.available == topology.CHIPS["v5e"].hbm_bytes
    over = costs.size(report.needed - report.available)
    state = 3 * 4 * report.parameters / 4
    assert report.state == pytest.approx(state, rel=0.01)
    assert f"of 15.75 GiB, over by {over}; parameters and opt" in report.verdict
    assert "the rest is activations; try: model.remat=full" in report.verdict
    text = table([report, reports["fsdp"]], SLICE)
    assert f"large: {report.verdict}" in text.splitlines()
    # The columns that can be compared still are.
    estimate = next(line for line in text.splitlines() if "estimated step, r" in line)
    assert estimate.split()[-4:-2] == ["-", "1.00"]
    assert json.loads(as_json([report], SLICE))["programs"][0]["memory"] is None


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"model__norm": "rmz"}, "unknown norms 'rmz'"),
        ({"model__remat": "all"}, "model.remat"),
        ({"mesh__fsdp": 3}, "axes that multiply to the 4 devices"),
        ({"data__batch": 6}, r"data.batch.*multiple of the 4 devices.*6"),
        (
            {"train__accumulate": 4},
            "multiple of the 4 devices.*times train.accumulate .4.",
        ),
        (
            {
                "model__features": 250,
                "model__mixer": "attention(heads=1)",
                "mesh__data": 1,
                "mesh__fsdp": 4,
            },
            "an axis of 250 that mesh axis fsdp=4 divides",
        ),
    ],
)
def test_mistakes_are_told_before_anything_is_compiled(changes, words):
    pytest.importorskip("libtpu")
    told = []
    with pytest.raises(ReslabError, match=words) as caught:
        compile_configs(
            {"right": small(), "wrong": small(**changes)}, SLICE, told.append
        )
    assert "\n" not in str(caught.value) and not told


def test_an_unknown_slice_and_a_missing_libtpu(monkeypatch):
    with pytest.raises(ReslabError, match="topology 'v5e:two'"):
        compile_configs({"small": small()}, "v5e:two")
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ReslabError, match=r"reslab\[tpu\]"):
        compile_configs({"small": small()}, SLICE)


# The step.


def test_the_step_is_sharded_and_in_place():
    config = small(model__features=32, mesh__data=1, mesh__fsdp=-1)
    mesh = make_mesh(config.mesh, jax.devices())
    setup = make_setup(config, mesh)
    with use_mesh(mesh):
        lowered = jit_step(setup).lower(
            setup.shapes, setup.task.batch_shapes(config.data.batch)
        )
    donated = [leaf.donated for leaf in jax.tree.leaves(lowered.args_info)]
    states = len(jax.tree.leaves(setup.shapes))
    assert donated == [True] * states + [False] * 6
    batch = setup.task.batch_shapes(config.data.batch)
    assert {key: str(leaf.dtype) for key, leaf in batch.items()} == {
        "tokens": "int32",
        "targets": "int32",
        "segment_ids": "int32",
        "positions": "int32",
        "loss_mask": "bool",
        "sizes": "int32",
    }
    assert {leaf.shape for leaf in batch.values()} == {(BATCH, LENGTH)}
