"""Costs of compiled steps as text: what `reslab compile` prints."""

import dataclasses
import importlib.metadata
import json
import math
import textwrap
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from reslab.parallel.aot.cost import Cost
from reslab.parallel.aot.program import Memory
from reslab.parallel.aot.wires import Traffic, Wire
from reslab.train.compiled import Report, size

NOTES = (
    "Everything is per device and step, and nothing was run.",
    "memory: XLA's own analysis; peak = arguments + outputs - donated + temporaries",
    "FLOPs: matrix products, a kernel's as the plain operation that it stands for; "
    "those of the model leave out what is computed again",
    "HBM traffic and what follows: the compiled program, loops as often as they run; "
    "a collective's bytes are those of the whole array that it makes or splits",
    "estimated step: an estimate for ratios between variants: the compiled schedule as "
    "a timeline, on which copies and collectives overlap computation and only "
    "the remainder of each is waited for; from the compiler's cycles, kernels by their "
    "own schedules, in which what stands under a condition always runs, but for the "
    "blocks that a causal mask empties; some 15% off where matrix products dominate",
    "estimated MFU: model FLOPs over the peak in that time, collectives at the full "
    "rate of their links, to where all of them are hidden; the error of the estimated "
    "step is its error",
    "compile time: on this machine; what was compiled before is read from JAX's "
    "compilation cache, if there is one",
    "measured: by the run that the config is of, on the devices it had",
)


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


class Measured(NamedTuple):
    """Training steps of a run, as it has measured them.

    Attributes:
      seconds: Mean of a step.
      utilization: Model FLOPs utilization; "-" where the peak of its chip is unknown.
      devices: The devices that it had.
    """

    seconds: float
    utilization: str
    devices: str


def _traffic(traffic: Traffic) -> str:
    return f"{size(traffic.bytes)} in {traffic.count:,}"


Cell = Callable[[Report], str]
Row = tuple[str, Cell, str]
_TITLES = {"train": "", "eval": ", evaluation", "generate": ", generation"}


def table(
    reports: Sequence[Report],
    topology_name: str,
    measured: Mapping[str, Measured] = types.MappingProxyType({}),
    *,
    has_notes: bool = True,
) -> str:
    """Reports as text, one column each, and where the figures of a row come from.

    Args:
      reports: At least one.
      topology_name: The slice they were compiled for.
      measured: The figures of runs, by the name of the report.
      has_notes: Whether the meaning of the rows follows.
    """
    devices = math.prod(reports[0].mesh.values())
    heading = f"{topology_name}, {devices} device{'s' if devices > 1 else ''}"
    heading += _TITLES[reports[0].work]
    rows: list[Row] = [
        (heading, lambda one: one.name, "origin"),
        ("mesh", _mesh, ""),
        *_compiled_rows(reports),
        *_estimated_rows(reports),
        *(_measured_rows(measured) if measured else ()),
        ("compile time", _compile_time, "measured here"),
    ]
    for title, count in (
        ("loops of unknown length", lambda c: c.unknown_loops),
        ("kernels without schedule", lambda c: c.unknown_kernels),
    ):
        if any(one.cost and count(one.cost) for one in reports):
            rows.append((title, _cost(lambda c, count=count: str(count(c))), ""))
    cells = [
        [title, *(write(one) for one in reports), origin]
        for title, write, origin in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        f"{title:{widths[0]}}  "
        + "  ".join(f"{cell:>{w}}" for cell, w in zip(row, widths[1:-1], strict=True))
        + f"  {origin:{widths[-1]}}"
        for title, *row, origin in cells
    ]
    verdicts = [f"{one.name}: {one.verdict}" for one in reports if not one.is_fitting]
    notes = [line for note in NOTES for line in textwrap.wrap(note, 88)]
    return "\n".join([*lines, "", *verdicts, *(notes if has_notes else [])])


def _memory(write: Callable[[Memory], int]) -> Cell:
    return lambda one: "-" if one.memory is None else size(write(one.memory))


def _cost(write: Callable[[Cost], str]) -> Cell:
    def cell(one: Report) -> str:
        if one.memory is None:
            return "-"
        return "unreadable" if one.cost is None else write(one.cost)

    return cell


def _compiled_rows(reports: Sequence[Report]) -> Iterator[Row]:
    yield "parameters", lambda one: f"{one.parameters:,}", "counted"
    yield "memory", lambda one: f"of {size(one.available)}", ""
    yield "  arguments", _memory(lambda m: m.arguments), "compiled"
    yield "  outputs", _memory(lambda m: m.outputs), "compiled"
    yield "  donated", _memory(lambda m: m.aliased), "compiled"
    yield "  temporaries", _memory(lambda m: m.temporaries), "compiled"
    yield "  code", _memory(lambda m: m.code), "compiled"
    yield "  peak", lambda one: size(one.needed), "compiled"
    yield "  share", lambda one: f"{one.needed / one.available:.1%}", "compiled"
    yield "FLOPs", lambda one: flops(one.counted_flops), "counted"
    yield "  of the model", lambda one: flops(one.model_flops), "counted"
    yield "  ratio", lambda one: f"{one.counted_flops / one.model_flops:.3f}", ""
    yield "HBM traffic", _cost(lambda c: size(c.hbm_bytes)), "compiled"
    yield "  copies", _cost(lambda c: _traffic(c.copies)), "compiled"
    yield "  kernels", _cost(lambda c: _traffic(c.kernels)), "compiled"
    wires = dict.fromkeys(
        wire for one in reports if one.cost for wire in one.cost.wires
    )
    for wire in wires:
        cell = _cost(lambda c, wire=wire: _traffic(c.wires.get(wire, Traffic())))
        yield _over(wire), cell, "compiled"


def _estimated_rows(reports: Sequence[Report]) -> Iterator[Row]:
    known = [one.estimated_seconds for one in reports if one.estimated_seconds]
    unknown = _cost(lambda cost: "-")

    def step(one: Report) -> str:
        found = one.estimated_seconds
        return unknown(one) if found is None else duration(found)

    def ratio(one: Report) -> str:
        found = one.estimated_seconds
        return unknown(one) if found is None else f"{found / known[0]:.2f}"

    def utilization(one: Report) -> str:
        found = one.estimated_mfu
        if found is None:
            return unknown(one)
        return " to ".join(f"{share:.2f}" for share in found)

    yield "estimated step", step, "compiled estimate"
    yield "estimated step, ratio", ratio, "compiled estimate"
    yield "estimated MFU", utilization, "compiled estimate"


def _measured_rows(measured: Mapping[str, Measured]) -> Iterator[Row]:
    def cell(write: Callable[[Measured], str]) -> Cell:
        return lambda one: write(measured[one.name]) if one.name in measured else "-"

    yield "step of the run", cell(lambda m: duration(m.seconds)), "measured"
    yield "MFU of the run", cell(lambda m: m.utilization), "measured"
    yield "  on", cell(lambda m: m.devices), "recorded"


def _compile_time(one: Report) -> str:
    if one.compile_seconds is None:
        return "-"
    return f"{one.compile_seconds:.1f} s" + (", cached" if one.is_cached else "")


def duration(seconds: float) -> str:
    """Writes a duration for people.

    >>> duration(0.00123), duration(2.5)
    ('1.23 ms', '2.50 s')
    """
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.2f} ms"


def _over(wire: Wire) -> str:
    return f"{wire.kind} over {' x '.join(wire.axes)}" if wire.axes else wire.kind


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


# The report shows the first separately; the second is meaningless alone.
_TIMES = ("seconds", "memory")


def _fields(report: Report) -> dict[str, Any]:
    # Wires are keys that JSON has no form for; they are written below.
    bare = dataclasses.replace(report, cost=None)
    fields: dict[str, Any] = dataclasses.asdict(bare)
    fields |= {"is_fitting": report.is_fitting, "verdict": report.verdict}
    fields["estimated_mfu"] = report.estimated_mfu
    if report.memory is not None:
        fields["memory"] = {**fields["memory"], "peak": report.memory.peak}
    if report.cost is not None:
        cost = dataclasses.asdict(dataclasses.replace(report.cost, wires={}))
        fields["cost"] = {k: v for k, v in cost.items() if k not in _TIMES} | {
            "collectives": {
                kind: dataclasses.asdict(traffic)
                for kind, traffic in report.cost.collectives.items()
            },
            "wires": [
                {"kind": wire.kind, "axes": list(wire.axes), "devices": wire.size}
                | dataclasses.asdict(traffic)
                for wire, traffic in report.cost.wires.items()
            ],
        }
    return fields
