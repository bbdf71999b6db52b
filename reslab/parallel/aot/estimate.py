"""The cost of a compiled program on the slice that it was compiled for."""

import functools
import types
from collections.abc import Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from reslab.parallel.aot.cost import Cost, Machine, program_cost
from reslab.parallel.aot.kernels import kernel_cycles
from reslab.parallel.aot.topology import Chip, Topology
from reslab.parallel.aot.wires import Traffic, Wire


def estimate(
    text: str,
    target: Topology,
    mesh: Mesh | None = None,
    *,
    shares: Mapping[str, float] = types.MappingProxyType({}),
    is_hidden: bool = False,
) -> Cost:
    """Estimates a program by its timeline, kernels by their schedules.

    Args:
      text: `compiled.as_text()`.
      target: What it was compiled for.
      mesh: The devices that it runs on, if several.
      shares: How much of what kernels do under a condition is done, by what their
        names begin with; all of it where it is not given.
      is_hidden: Whether collectives take no time, as if all were hidden.

    Returns:
      The cost on one device; collectives take their links' full rate.
    """
    link = functools.partial(link_seconds, mesh, target.chip) if mesh else None
    machine = Machine(
        target.chip,
        mesh=mesh.shape if mesh else {},
        link_seconds=None if is_hidden else link,
        kernels=kernel_cycles(text, target.generation),
        shares=shares,
    )
    return program_cost(text, machine)


def link_seconds(mesh: Mesh, chip: Chip, wire: Wire, traffic: Traffic) -> float:
    """Time of collectives at the full rate of their links."""
    return _sent(wire, traffic) / bandwidth(mesh, chip, wire.axes)


def _sent(wire: Wire, traffic: Traffic) -> float:
    """Returns the bytes that each device sends for collectives of given bytes."""
    if wire.kind in ("collective-permute", "collective-broadcast") or not wire.size:
        return traffic.bytes
    share = (wire.size - 1) / wire.size * traffic.bytes
    return 2 * share if wire.kind == "all-reduce" else share


def bandwidth(mesh: Mesh, chip: Chip, axes: Sequence[str]) -> float:
    """Bytes per second that a device can send to others along axes of the mesh.

    The devices of a group lie along one or more axes of the slice; each has a link
    on either side, if it is a ring, and one to count on, if it is a line.

    Args:
      mesh: The devices.
      chip: What they are.
      axes: Axes of the mesh.
    """
    at = tuple(slice(None) if axis in axes else slice(0, 1) for axis in mesh.axis_names)
    group, everyone = list(mesh.devices[at].flat), list(mesh.devices.flat)
    if len({getattr(device, "slice_index", 0) for device in group}) > 1:
        return chip.network
    sizes = [len(set(along)) for along in zip(*_places(group), strict=True)]
    whole = [len(set(along)) for along in zip(*_places(everyone), strict=True)]
    links = sum(
        2 if part == size and size % chip.ring == 0 else 1
        for part, size in zip(sizes, whole, strict=True)
        if part > 1
    )
    return max(1, links) * chip.link


def _places(devices: Any) -> list[tuple[int, ...]]:
    return [tuple(device.coords) for device in devices]
