"""Cost without the chip: training steps compiled for an absent TPU, side by side."""

import dataclasses
import importlib.metadata
import json
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AbstractDevice, AbstractMesh, AxisType
from ml_collections import ConfigDict

from reslab.core import config as configs
from reslab.core.trees import count_parameters
from reslab.core.types import MESH_AXES
from reslab.observe.flops import count_flops
from reslab.observe.meter import PEAK_FLOPS
from reslab.parallel.aot.hlo import COLLECTIVES, Cost, Traffic, program_cost
from reslab.parallel.aot.program import Memory, OutOfMemory, compile_program
from reslab.parallel.aot.topology import Topology, topology
from reslab.parallel.mesh import make_mesh, use_mesh
from reslab.train.state import Setup, check_batch, make_setup
from reslab.train.step import jit_step, make_step

NOTES = (
    "Everything is per device and step, and nothing was run.",
    "memory: XLA's own analysis; peak = arguments + outputs - donated + temporaries",
    "FLOPs: matrix products, a kernel's as the plain operation that it stands for; "
    "those of the model leave out what is computed again",
    "HBM traffic and what follows: the compiled program, loops as often as they run; "
    "a collective's bytes are those of the whole array that it makes or splits",
    "estimated step: an estimate for ratios between variants, from the compiler's "
    "cycles; some 15% off where matrix products dominate, more where kernels do, "
    "taken at their roofline; waiting for collectives is not in it",
    "compile time: on this machine",
)


@dataclasses.dataclass(frozen=True)
class Report:
    """What the training step of one config costs, on each device.

    Attributes:
      name: What to call the config.
      mesh: Size of each mesh axis.
      parameters: Number of parameters of the model.
      needed: Bytes of memory that a step needs.
      available: Bytes of memory that a device has.
      remedies: Changes of the config that need less memory.
      counted_flops: FLOPs of the matrix products, recomputation included.
      model_flops: FLOPs without it, as in model FLOPs utilization.
      memory: What memory holds, by kind; None if the compiler found too little.
      compile_seconds: Time to compile on this machine; None like `memory`.
      cost: What the compiled program does; None if its text cannot be read.
      estimated_seconds: Estimate of a step; None like `cost`.
    """

    name: str
    mesh: Mapping[str, int]
    parameters: int
    needed: int
    available: int
    remedies: tuple[str, ...]
    counted_flops: float
    model_flops: float
    memory: Memory | None = None
    compile_seconds: float | None = None
    cost: Cost | None = None
    estimated_seconds: float | None = None

    @property
    def is_fitting(self) -> bool:
        """Whether the step fits a device."""
        return self.needed <= self.available

    @property
    def verdict(self) -> str:
        """Whether it fits, and if not, by how much and what to try."""
        if self.is_fitting:
            return "fits"
        over = self.needed - self.available
        return (
            f"does not fit: needs {size(self.needed)} of {size(self.available)}, "
            f"over by {size(over)}; try: {' or '.join(self.remedies)}"
        )


def compile_configs(
    named: Mapping[str, ConfigDict],
    topology_name: str,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Report]:
    """Compiles the training steps of configs for a TPU slice; runs nothing.

    No data are loaded; a language model's tokenizer is.

    Args:
      named: Configs by the names that they have in the report.
      topology_name: Such as `v5e:2x4`.
      tell: Is given a line as each config begins.

    Returns:
      A report for each config.

    Raises:
      ReslabError: On an unknown slice, a config that is wrong or does not fit the
        slice, or without libtpu; before anything is compiled.
    """
    for config in named.values():
        configs.check(config)
    # Nothing runs, but JAX would look for an accelerator to run it on.
    platforms = "jax_platforms"
    if not getattr(jax.config, platforms):
        jax.config.update(platforms, "cpu")
    target = topology(topology_name)
    prepared = []
    for name, config in named.items():
        mesh = make_mesh(config.mesh, target.devices)
        setup = make_setup(config, mesh)
        check_batch(config, mesh)
        prepared.append((name, setup))
    reports = []
    for name, setup in prepared:
        tell(f"compiling {name} for {topology_name} ...")
        reports.append(_report(name, setup, target))
    return reports


def _report(name: str, setup: Setup, target: Topology) -> Report:
    config, mesh, chip = setup.config, setup.mesh, target.chip
    devices, batch = mesh.devices.size, setup.task.batch_shapes(config.data.batch)
    with use_mesh(mesh):
        traced = jit_step(setup).trace(setup.shapes, batch)
        lowered = traced.lower()
        # What the jaxpr of the TPU's program says, kernels without an estimate out.
        outside = count_flops(make_step(setup), setup.shapes, batch)
    counted = plain_flops(setup)
    units = config.data.batch * setup.task.units_per_example
    per_unit = setup.task.flops_per_unit(setup.model, setup.shapes.params)
    report = Report(
        name=name,
        mesh=dict(mesh.shape),
        parameters=count_parameters(setup.shapes.params),
        needed=0,
        available=chip.hbm_bytes,
        remedies=_remedies(setup),
        counted_flops=counted / devices,
        model_flops=per_unit * units / devices,
    )
    try:
        program = compile_program(lowered)
    except OutOfMemory as exceeded:
        return dataclasses.replace(
            report, needed=exceeded.needed, available=exceeded.available
        )
    report = dataclasses.replace(
        report,
        needed=program.memory.peak,
        memory=program.memory,
        compile_seconds=program.compile_seconds,
    )
    if program.text is None:
        return report
    cost = program_cost(
        program.text, clock=chip.clock, hbm_bandwidth=chip.hbm_bandwidth
    )
    kernel_flops = max(0, counted - outside) / devices
    kernel_seconds = max(
        cost.kernels.bytes / chip.hbm_bandwidth,
        kernel_flops / PEAK_FLOPS[target.devices[0].device_kind],
    )
    seconds = cost.seconds + (kernel_seconds if cost.kernels.count else 0.0)
    return dataclasses.replace(report, cost=cost, estimated_seconds=seconds)


def plain_flops(setup: Setup) -> int:
    """FLOPs of a training step over all devices, with no kernel in it.

    A TPU kernel need not say what it computes (JAX's attention does not). On a
    device without kernels the same step is plain products, which are counted.
    """
    plain = AbstractMesh(
        (1,) * len(MESH_AXES),
        MESH_AXES,
        axis_types=(AxisType.Auto,) * len(MESH_AXES),
        abstract_device=AbstractDevice("cpu", None, "cpu"),
    )
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), setup.shapes
    )
    if getattr(setup.model, "kernels", "auto") != "auto":
        model = setup.model.clone(kernels="reference")
        setup = dataclasses.replace(setup, model=model)
    with jax.sharding.use_abstract_mesh(plain):
        step = make_step(setup)
        return count_flops(
            step, shapes, setup.task.batch_shapes(setup.config.data.batch)
        )


def _remedies(setup: Setup) -> tuple[str, ...]:
    config, found = setup.config, []
    if config.model.remat != "full":
        found.append("model.remat=full")
    rows = setup.mesh.shape["data"] * setup.mesh.shape["fsdp"]
    parts = 2 * config.train.accumulate
    if config.data.batch % (rows * parts) == 0:
        found.append(f"train.accumulate={parts}")
    if setup.mesh.shape["data"] > 1:
        found.append("mesh.data=1 with mesh.fsdp=-1")
    return (*found, "a larger slice")


def size(count: float) -> str:
    """Writes bytes for people.

    >>> size(512), size(3 * 2**20), size(26.05 * 2**30)
    ('512 B', '3.00 MiB', '26.05 GiB')
    """
    units = ["TiB", "GiB", "MiB", "KiB", "B"]
    while count >= 1024 and len(units) > 1:
        count /= 1024
        units.pop()
    return f"{count:.0f} B" if units[-1] == "B" else f"{count:,.2f} {units[-1]}"


def flops(count: float) -> str:
    """Writes FLOPs for people.

    >>> flops(256), flops(1.234e13)
    ('256', '12.34 T')
    """
    prefixes = ["P", "T", "G", "M", "k", ""]
    while count >= 1000 and len(prefixes) > 1:
        count /= 1000
        prefixes.pop()
    return f"{count:,.2f} {prefixes[-1]}" if prefixes[-1] else f"{count:.0f}"


def _traffic(traffic: Traffic) -> str:
    return f"{size(traffic.bytes)} in {traffic.count:,}"


def table(reports: Sequence[Report], topology_name: str) -> str:
    """Reports as text, one column each.

    Args:
      reports: At least one.
      topology_name: The slice they were compiled for.
    """
    kinds = [
        kind
        for kind in COLLECTIVES
        if any(one.cost and kind in one.cost.collectives for one in reports)
    ]
    first = next(
        (one.estimated_seconds for one in reports if one.estimated_seconds), None
    )

    def memory(write):
        return lambda one: "-" if one.memory is None else write(one.memory)

    def cost(write):
        def cell(one):
            if one.memory is None:
                return "-"
            return "unreadable" if one.cost is None else write(one.cost)

        return cell

    def collective(kind):
        return cost(lambda c: _traffic(c.collectives.get(kind, Traffic())))

    def estimate(one):
        if one.estimated_seconds is None or first is None:
            return cost(lambda c: "-")(one)
        return f"{one.estimated_seconds / first:.2f}"

    def seconds(one):
        return "-" if one.compile_seconds is None else f"{one.compile_seconds:.1f} s"

    devices = math.prod(reports[0].mesh.values())
    heading = f"{topology_name}, {devices} device{'s' if devices > 1 else ''}"
    rows: list[tuple[str, Callable[[Report], str]]] = [
        (heading, lambda one: one.name),
        ("mesh", _mesh),
        ("parameters", lambda one: f"{one.parameters:,}"),
        ("memory", lambda one: f"of {size(one.available)}"),
        ("  arguments", memory(lambda m: size(m.arguments))),
        ("  outputs", memory(lambda m: size(m.outputs))),
        ("  donated", memory(lambda m: size(m.aliased))),
        ("  temporaries", memory(lambda m: size(m.temporaries))),
        ("  code", memory(lambda m: size(m.code))),
        ("  peak", lambda one: size(one.needed)),
        ("  share", lambda one: f"{one.needed / one.available:.1%}"),
        ("FLOPs", lambda one: flops(one.counted_flops)),
        ("  of the model", lambda one: flops(one.model_flops)),
        ("  ratio", lambda one: f"{one.counted_flops / one.model_flops:.3f}"),
        ("HBM traffic", cost(lambda c: size(c.hbm_bytes))),
        ("  copies", cost(lambda c: _traffic(c.copies))),
        ("  kernels", cost(lambda c: _traffic(c.kernels))),
        *((kind, collective(kind)) for kind in kinds),
        ("estimated step, ratio", estimate),
        ("compile time", seconds),
    ]
    if any(one.cost and one.cost.unknown_loops for one in reports):
        unknown = cost(lambda c: str(c.unknown_loops))
        rows.append(("loops of unknown length", unknown))
    cells = [[title, *(write(one) for one in reports)] for title, write in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        f"{title:{widths[0]}}  "
        + "  ".join(f"{cell:>{w}}" for cell, w in zip(row, widths[1:], strict=True))
        for title, *row in cells
    ]
    verdicts = [f"{one.name}: {one.verdict}" for one in reports if not one.is_fitting]
    notes = [line for note in NOTES for line in textwrap.wrap(note, 88)]
    return "\n".join([*lines, "", *verdicts, *notes])


def _mesh(report: Report) -> str:
    axes = [f"{axis}={size}" for axis, size in report.mesh.items() if size > 1]
    return " ".join(axes) or "one device"


def as_json(reports: Sequence[Report], topology_name: str) -> str:
    """Reports as JSON: bytes, FLOPs and seconds of one device, as plain numbers."""
    versions = {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}
    body = {
        "topology": topology_name,
        "versions": versions,
        "notes": list(NOTES),
        "programs": [_fields(one) for one in reports],
    }
    return json.dumps(body, indent=1, allow_nan=False)


def _fields(report: Report) -> dict[str, Any]:
    fields: dict[str, Any] = dataclasses.asdict(report)
    fields |= {"is_fitting": report.is_fitting, "verdict": report.verdict}
    if report.memory is not None:
        fields["memory"] = {**fields["memory"], "peak": report.memory.peak}
    if report.cost is not None:
        # The seconds of a cost leave out the kernels; those of the report do not.
        cost = dataclasses.asdict(report.cost)
        fields["cost"] = {k: v for k, v in cost.items() if k != "seconds"}
    return fields
