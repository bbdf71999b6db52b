"""Collectives of a compiled program: what kind, over which devices, how many bytes."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from reslab.parallel.aot.hlo import COLLECTIVES, Computation, Instruction, Module

# An asynchronous collective is a chain of fusions that each repeat it: one starts it,
# some compute meanwhile, the last one waits.
ASYNC_START, ASYNC_DONE = "AsyncCollectiveStart", "AsyncCollectiveDone"
ASYNC = (ASYNC_START, ASYNC_DONE)

_LISTED = re.compile(
    r"\b(?:replica_groups|source_target_pairs)=(\{(?:\{[\d,]*\},?)*\})"
)
_STRIDED = re.compile(r"\breplica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")

_NAMED = re.compile(r"\breplica_groups=mesh\[((?:'\w+'=\d+,?)+)\] ?\{((?:'\w+',?)+)\}")


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Count of an event in a step, and the bytes that it moves."""

    count: int = 0
    bytes: int = 0

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(self.count + other.count, self.bytes + other.bytes)

    def __mul__(self, times: int) -> "Traffic":
        return Traffic(self.count * times, self.bytes * times)


class Wire(NamedTuple):
    """A kind of collective, and the axes of the mesh that it runs over.

    Attributes:
      kind: One of `COLLECTIVES`.
      axes: Names of the axes along which the devices of a group differ, in the
        order of the mesh; () where that cannot be said.
      size: How many devices are in a group; 0 where that cannot be said.
    """

    kind: str
    axes: tuple[str, ...] = ()
    size: int = 0


class Sent(NamedTuple):
    """A collective that an instruction is or holds.

    Attributes:
      key: Names it where several instructions repeat it.
      wire: Its kind and axes.
      traffic: Its bytes.
    """

    key: str
    wire: Wire
    traffic: Traffic


def is_continued(computation: Computation) -> bool:
    """Returns whether an earlier fusion began the collectives of this one."""
    values = computation.instructions.values()
    if any(one.target == ASYNC_START for one in values):
        return False
    return any("chain_id=" in one.attributes for one in values if one.collective)


def collectives(
    module: Module,
    computation: Computation,
    one: Instruction,
    mesh: Mapping[str, int],
) -> Iterator[Sent]:
    """The collectives that an instruction is, or holds when it is a fusion."""
    if one.collective:
        traffic = Traffic(1, _payload(computation, one))
        yield Sent(one.name, _wire(one.collective, one, mesh), traffic)
    inner = module.fused(one)
    for part in inner.instructions.values():
        if part.opcode == "fusion":
            yield from collectives(module, inner, part, mesh)
        if not part.collective:
            continue
        channel = re.search(r"channel_id=(\d+)", part.attributes)
        key = f"{part.collective} {channel[1] if channel else part.name}"
        is_scatter = part.opcode == "all-reduce" and _keeps_its_part(inner, part)
        kind = "reduce-scatter" if is_scatter else part.collective
        yield Sent(key, _wire(kind, part, mesh), Traffic(1, _payload(inner, part)))


def between_slices(one: Instruction, mesh: Mapping[str, int]) -> Iterator[Sent]:
    """Counts the bytes that a `send` moves between slices, by way of their hosts.

    Each device sends what it has and receives the result. Slices lie behind one
    another along the first axis of the mesh.
    """
    transfer = re.search(r'_xla_megascale_transfer_type="(\w+)"', one.attributes)
    if one.opcode == "recv" or not transfer:
        return
    kind = transfer[1].lower().replace("_", "-")
    kind = kind if kind in COLLECTIVES else "collective-permute"
    wire, payload = Wire(kind), one.shapes[0].bytes
    slices = re.search(r'_xla_megascale_target="\{([\d,:]+)\}', one.attributes)
    if mesh and slices:
        wire = Wire(kind, tuple(mesh)[:1], _numbers_in(slices[1]))
        payload *= wire.size if kind == "all-gather" else 1
    yield Sent(one.name, wire, Traffic(1, payload))


def _wire(kind: str, one: Instruction, mesh: Mapping[str, int]) -> Wire:
    """Which devices take part, as axes of the mesh.

    Devices have the numbers of their places in the mesh.
    """
    if not mesh:
        return Wire(kind)
    names, sizes = tuple(mesh), tuple(mesh.values())
    groups = _groups(one.attributes, math.prod(sizes))
    if groups is None:
        return Wire(kind)
    # (groups, their devices, axes): the axes along which the devices of a group differ.
    places = np.stack(np.unravel_index(groups, sizes), axis=-1)
    differ = np.any(places != places[:, :1], axis=(0, 1))
    axes = tuple(name for name, is_one in zip(names, differ, strict=True) if is_one)
    return Wire(kind, axes, math.prod(mesh[name] for name in axes))


def _groups(attributes: str, devices: int) -> np.ndarray | None:
    """The devices of each group of a collective; None where they cannot be read.

    >>> _groups("replica_groups={{0,1},{2,3}}", 4).tolist()
    [[0, 1], [2, 3]]
    >>> _groups("replica_groups=[2,2]<=[2,2]T(1,0)", 4).tolist()
    [[0, 2], [1, 3]]
    >>> _groups("replica_groups=mesh['a'=2,'b'=2] {'a'}", 4).tolist()
    [[0, 2], [1, 3]]
    """

    def numbers(text: str) -> list[int]:
        return [int(number) for number in text.split(",")]

    if found := _STRIDED.search(attributes):
        order = np.arange(math.prod(numbers(found[2]))).reshape(numbers(found[2]))
        order = order.transpose(numbers(found[3])) if found[3] else order
        return order.reshape(numbers(found[1]))
    if found := _NAMED.search(attributes):
        sizes = {n: int(size) for n, size in re.findall(r"'(\w+)'=(\d+)", found[1])}
        names, inside = list(sizes), re.findall(r"'(\w+)'", found[2])
        places = np.arange(math.prod(sizes.values())).reshape(*sizes.values())
        last = [names.index(name) for name in inside]
        first = [axis for axis in range(len(names)) if axis not in last]
        grouped = places.transpose(first + last)
        return grouped.reshape(-1, math.prod(sizes[name] for name in inside))
    if found := _LISTED.search(attributes):
        groups = [numbers(group) for group in re.findall(r"\{([\d,]+)\}", found[1])]
        if len({len(group) for group in groups}) == 1:
            return np.asarray(groups)
        return None if groups else np.arange(devices)[None]
    return None


def _numbers_in(text: str) -> int:
    """Counts the numbers in a list of numbers and ranges.

    >>> _numbers_in("1,2"), _numbers_in("0:3,8")
    (2, 5)
    """
    ends = [part.split(":") for part in text.split(",")]
    return sum(int(part[-1]) - int(part[0]) + 1 for part in ends)


def _payload(computation: Computation, one: Instruction) -> int:
    """Bytes of the whole array: before it is scattered, after it is gathered."""
    operands = sum(
        shape.bytes
        for name in one.operands
        for shape in computation.instructions[name].shapes
    )
    results = sum(shape.bytes for shape in one.shapes if shape.sizes or operands < 8)
    if one.opcode.endswith("-start"):
        results -= operands  # Its results include its operands.
    return max(operands, results)


def _keeps_its_part(computation: Computation, one: Instruction) -> bool:
    """Returns whether only slices of a result are used."""
    users = [user for user, _ in computation.users.get(one.name, ())]
    return bool(users) and all(
        user.opcode == "dynamic-slice"
        or (
            user.opcode in ("get-tuple-element", "bitcast")
            and _keeps_its_part(computation, user)
        )
        for user in users
    )
