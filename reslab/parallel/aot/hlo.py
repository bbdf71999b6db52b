"""What a compiled TPU program costs, read from its text.

XLA's own `cost_analysis` counts the body of a loop once, so a model scanned over
its layers looks as cheap as one layer. Here every loop counts as often as it runs.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from reslab.core.errors import ReslabError

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)

# The compiler's own cycles are 0.88 to 0.98 of the peak for matrix products on v5e
# and v5p. For loops they were 2.2 to 2.8 times the measured time (normalizations
# on a TPU7x, published by tokamax), the same factor over shapes: divided by 2.5.
LOOP_CYCLES_OVER_MEASURED = 2.5

_BITS = {"pred": 8, "s4": 4, "u4": 4, "s2": 2, "u2": 2, "bf16": 16}
_BITS |= {f"{kind}{bits}": bits for kind in "su" for bits in (8, 16, 32, 64)}
_BITS |= {f"f{bits}": bits for bits in (16, 32, 64)} | {"c64": 64, "c128": 128}

_SHAPE = re.compile(r"\b([a-z][a-z0-9]*)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"  +(ROOT )?%?([\w.\-]+) = (.*)")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
    r"\b(calls|to_apply|condition|body|branch_computations|true_computation"
    r"|false_computation)=(\{[^}]*\}|%?[\w.\-]+)"
)
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_UNKNOWN_CYCLES = str(2**63 - 1)  # What the compiler writes where it cannot say.
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')

# They name, view or wait for what others moved.
_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "iota",
    "after-all",
    "partition-id",
    "replica-id",
    "optimization-barrier",
    "add-dependency",
}
_FREE_CALLS = {"AllocateBuffer", "AssumeGatherIndicesInBound", "ConcatBitcast"}
_KERNEL = "tpu_custom_call"


@dataclasses.dataclass(frozen=True)
class Traffic:
    """How often something happens in a step, and how many bytes it moves."""

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


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one device does in one run of a program.

    Attributes:
      hbm_bytes: Bytes read from and written to its memory, as they lie there:
        tiles are padded, and what stays in the chip's own memory is not counted.
        A slice of a larger array counts what is sliced.
      copies: Instructions that only move or lay out again, with their bytes in
        memory, read and written; prefetches into the chip are not among them.
      wires: Collectives by kind and axes of the mesh, with the bytes of the whole
        array: what a gather results in, what a scatter starts from. A collective
        that XLA spreads over several fusions counts once, an all-reduce of which
        each device keeps its own part as the reduce-scatter that it is. What several
        slices send each other has the first axis, and the bytes of a device's part.
      kernels: Pallas kernels, with the bytes of their operands and results.
      by_kernel: The same for each, by name.
      seconds: Estimate, without kernels and without waiting for collectives.
      unknown_loops: Loops whose length could not be read, counted once.
    """

    hbm_bytes: int = 0
    copies: Traffic = Traffic()
    wires: Mapping[Wire, Traffic] = dataclasses.field(default_factory=dict)
    kernels: Traffic = Traffic()
    by_kernel: Mapping[str, Traffic] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    unknown_loops: int = 0

    @property
    def collectives(self) -> dict[str, Traffic]:
        """The same by kind, over whichever axes."""
        found: dict[str, Traffic] = {}
        for wire, traffic in self.wires.items():
            found[wire.kind] = found.get(wire.kind, Traffic()) + traffic
        return found

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.hbm_bytes + other.hbm_bytes,
            self.copies + other.copies,
            _together(self.wires, other.wires),
            self.kernels + other.kernels,
            _together(self.by_kernel, other.by_kernel),
            self.seconds + other.seconds,
            self.unknown_loops + other.unknown_loops,
        )

    def __mul__(self, times: int) -> "Cost":
        return Cost(
            self.hbm_bytes * times,
            self.copies * times,
            {wire: traffic * times for wire, traffic in self.wires.items()},
            self.kernels * times,
            {name: traffic * times for name, traffic in self.by_kernel.items()},
            self.seconds * times,
            self.unknown_loops,
        )


def _together(one: Mapping[Any, Traffic], other: Mapping[Any, Traffic]) -> Any:
    keys, none = dict.fromkeys((*one, *other)), Traffic()
    return {key: one.get(key, none) + other.get(key, none) for key in keys}


def program_cost(
    text: str,
    *,
    clock: float,
    hbm_bandwidth: float,
    mesh: Mapping[str, int] | None = None,
) -> Cost:
    """Adds up a compiled and scheduled program, loops as often as they run.

    Args:
      text: `compiled.as_text()`.
      clock: Cycles per second of the chip.
      hbm_bandwidth: Bytes per second of its memory.
      mesh: Size of each axis of the mesh that it was compiled for, in order;
        collectives are told apart by axes where it is given.

    Returns:
      The cost on one device.

    Raises:
      ReslabError: If the text is not that of a compiled program.
    """
    cost = _Reader(_parse(text), clock, hbm_bandwidth, mesh or {}).entry()
    wires = sorted(
        cost.wires.items(), key=lambda one: (COLLECTIVES.index(one[0].kind), one[0])
    )
    return dataclasses.replace(cost, wires=dict(wires))


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array of a program: dtype, sizes and layout.

    >>> Shape.all("bf16[3,64]{1,0:T(8,128)(2,1)}")[0].laid_out
    2048
    """

    bits: int
    sizes: tuple[int, ...]
    layout: str = ""

    @classmethod
    def all(cls, text: str) -> tuple["Shape", ...]:
        """Every array in the text of a type."""
        return tuple(
            cls(
                _BITS.get(dtype, 8),  # 8 is the small floats.
                tuple(int(s) for s in re.findall(r"\d+", sizes)),
                layout or "",
            )
            for dtype, sizes, layout in _SHAPE.findall(text)
            if dtype in _BITS or dtype.startswith("f8")
        )

    @property
    def bytes(self) -> int:
        """Bytes of the elements."""
        return math.ceil(self.bits * math.prod(self.sizes) / 8)

    @property
    def laid_out(self) -> int:
        """Bytes in memory: the last axes are padded to whole tiles."""
        order, _, tiles = self.layout.partition(":")
        minor_first = [int(axis) for axis in order.split(",") if axis]
        sizes = [self.sizes[axis] for axis in reversed(minor_first)]
        if tile := re.match(r"T\(([\d,]+)\)", tiles):
            tile_sizes = [int(size) for size in tile[1].split(",")]
            sizes = [1] * (len(tile_sizes) - len(sizes)) + sizes
            split = len(sizes) - len(tile_sizes)
            sizes[split:] = [
                tile_size * math.ceil(size / tile_size)
                for size, tile_size in zip(sizes[split:], tile_sizes, strict=True)
            ]
        return math.ceil(self.bits * math.prod(sizes) / 8)

    @property
    def hbm(self) -> int:
        """Bytes in the device's memory; 0 for what lies in the chip or a host."""
        return 0 if re.search(r"S\([1-9]", self.layout) else self.laid_out


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    inside: str
    attributes: str

    @functools.cached_property
    def called(self) -> dict[str, list[str]]:
        """The computations that it names, by role."""
        return {
            role: re.findall(r"[\w.\-]+", names)
            for role, names in _CALLED.findall(self.attributes)
        }

    @property
    def target(self) -> str | None:
        """What a custom call calls."""
        found = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return found[1] if found else None

    @property
    def collective(self) -> str | None:
        """Its kind, where it begins a collective or is one."""
        kind = self.opcode.removesuffix("-start")
        return kind if kind in COLLECTIVES else None


@dataclasses.dataclass
class Computation:
    """A list of instructions with one result."""

    instructions: dict[str, Instruction]
    root: str = ""

    @functools.cached_property
    def parameters(self) -> dict[int, Instruction]:
        """The parameters by number."""
        return {
            int(one.inside): one
            for one in self.instructions.values()
            if one.opcode == "parameter"
        }

    @functools.cached_property
    def users(self) -> dict[str, list[tuple[Instruction, int]]]:
        """Who reads each instruction, and as which operand."""
        found: dict[str, list[tuple[Instruction, int]]] = {}
        for one in self.instructions.values():
            for position, name in enumerate(one.operands):
                found.setdefault(name, []).append((one, position))
        return found


@dataclasses.dataclass(frozen=True)
class _Module:
    computations: dict[str, Computation]
    entry: str


def _parse(text: str) -> _Module:
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in _joined(text):
        if head := _HEAD.match(line):
            current = computations[head[2]] = Computation({})
            entry = head[2] if head[1] else entry
        elif line == "}":
            current = None
        elif current is not None and (found := _INSTRUCTION.match(line)):
            one = _instruction(found[2], found[3])
            current.instructions[one.name] = one
            current.root = one.name if found[1] else current.root
    if not entry:
        raise ReslabError("compiled program", expected="the text of an HLO module")
    return _Module(computations, entry)


def _joined(text: str) -> Iterator[str]:
    """The lines of a program; an attribute may hold line breaks of its own."""
    line = ""
    for piece in text.splitlines():
        if piece == "}" or not line or _HEAD.match(piece) or _INSTRUCTION.match(piece):
            yield line
            line = piece
        else:
            line += " " + piece
    yield line


def _instruction(name: str, text: str) -> Instruction:
    # A tuple type holds parentheses of its own.
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    opcode, _, _ = text[end + 1 :].partition("(")
    begin = end + 1 + len(opcode)
    stop = _closing(text, begin)
    inside = text[begin + 1 : stop]
    return Instruction(
        name,
        opcode.strip(),
        Shape.all(text[:end]),
        tuple(_NAME.findall(inside)),
        inside,
        text[stop + 1 :],
    )


def _closing(text: str, begin: int) -> int:
    """Where the parenthesis that opens at `begin` closes."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, begin):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.start()
    raise ReslabError("compiled program: a parenthesis is not closed")


class Term(NamedTuple):
    """An integer of a loop: a part of its state (None for none), and a constant."""

    index: int | None
    offset: int


class _Reader:
    """Walks a module from its entry."""

    def __init__(
        self,
        module: _Module,
        clock: float,
        hbm_bandwidth: float,
        mesh: Mapping[str, int],
    ):
        self._module = module
        self._clock = clock
        self._bandwidth = hbm_bandwidth
        self._mesh = mesh
        self._costs: dict[str, Cost] = {}
        self._reads: dict[tuple[str, int], int] = {}

    def entry(self) -> Cost:
        return self._computation(self._module.entry)

    def _computation(self, name: str) -> Cost:
        """The cost of one run; computations are shared, so each is read once."""
        if name not in self._costs:
            computation, chains = self._module.computations[name], set()
            self._costs[name] = sum(
                (
                    self._instruction(computation, one, chains)
                    for one in computation.instructions.values()
                ),
                Cost(),
            )
        return self._costs[name]

    def _instruction(
        self, computation: Computation, one: Instruction, chains: set[str]
    ) -> Cost:
        """The cost of one instruction outside any fusion.

        Args:
          computation: Where it stands.
          one: The instruction.
          chains: Collectives seen in this computation; those inside are added.
        """
        if one.opcode in _FREE or one.opcode.endswith(("-done", "-update")):
            return Cost()
        if one.opcode == "while":
            return self._loop(computation, one)
        if one.opcode in ("call", "async-start"):
            (name,) = one.called.get("to_apply") or one.called["calls"]
            return self._computation(name)
        if one.opcode == "conditional":
            branches = [
                self._computation(name)
                for names in one.called.values()
                for name in names
            ]
            return max(branches, key=lambda cost: cost.hbm_bytes)
        if one.opcode == "custom-call" and one.target in _FREE_CALLS:
            return Cost()
        if one.opcode in ("send", "recv"):
            return self._between_slices(one)
        moved = self._moved(computation, one)
        if one.target == _KERNEL:
            traffic, name = Traffic(1, moved), re.sub(r"\.\d+$", "", one.name)
            return Cost(moved, kernels=traffic, by_kernel={name: traffic})
        copies = Traffic()
        if one.opcode == "copy" and moved:
            copies = Traffic(1, moved)
        if one.opcode == "copy-start" and all(s.hbm for s in one.shapes[:2]):
            copies = Traffic(1, moved)
        seconds = 0.0 if one.collective else self._seconds(one, moved)
        return sum(
            self._collectives(computation, one, chains),
            Cost(moved, copies, seconds=seconds),
        )

    def _seconds(self, one: Instruction, moved: int) -> float:
        cycles = _CYCLES.search(one.attributes)
        if not cycles or cycles[1] == _UNKNOWN_CYCLES:
            return moved / self._bandwidth
        seconds = int(cycles[1]) / self._clock
        return seconds if self._multiplies(one) else seconds / LOOP_CYCLES_OVER_MEASURED

    def _multiplies(self, one: Instruction) -> bool:
        return one.opcode in ("dot", "convolution") or any(
            self._multiplies(inner) for inner in self._fused(one).instructions.values()
        )

    def _fused(self, one: Instruction) -> Computation:
        names = one.called.get("calls", []) if one.opcode == "fusion" else []
        return self._module.computations[names[0]] if names else Computation({})

    # Loops.

    def _loop(self, computation: Computation, one: Instruction) -> Cost:
        (condition,), (body,) = one.called["condition"], one.called["body"]
        inside = self._computation(body) + self._computation(condition)
        trips = self._trips(computation, one, condition, body)
        return inside + Cost(unknown_loops=1) if trips is None else inside * trips

    def _trips(
        self, computation: Computation, one: Instruction, condition: str, body: str
    ) -> int | None:
        """How often a loop runs; None where that cannot be read.

        TPU programs carry no trip count. Their loops compare a counter of their
        state with a limit; the counter may grow by more than one, where XLA has
        unrolled the loop that overlaps a product with its collective.
        """
        if known := _TRIPS.search(one.attributes):
            return int(known[1])
        test, step = (self._module.computations[name] for name in (condition, body))
        state = computation.instructions[one.operands[0]]
        update = step.instructions[step.root]
        if state.opcode != "tuple" or update.opcode != "tuple":
            return None

        def begins(term: Term) -> int | None:
            """The value of a term before the first pass."""
            if term.index is None:
                return term.offset
            first = computation.instructions[state.operands[term.index]]
            value = self._term(computation, first)
            if value is None or value.index is not None:
                return None
            return value.offset + term.offset

        def grows(term: Term) -> int | None:
            """By how much a term changes in a pass."""
            if term.index is None:
                return 0
            after = self._term(step, step.instructions[update.operands[term.index]])
            if after is None or after.index != term.index:
                return None
            return after.offset

        sides = self._compared(test, test.instructions[test.root], ())
        if sides is None:
            return None
        counter, limit = sides
        first, last, by = begins(counter), begins(limit), grows(counter)
        if first is None or last is None or not by or by < 0 or grows(limit) != 0:
            return None
        return max(0, math.ceil((last - first) / by))

    def _compared(
        self,
        computation: Computation,
        one: Instruction,
        given: Sequence[Term | None],
    ) -> tuple[Term, Term] | None:
        """The two sides of `counter < limit`."""
        operands = [computation.instructions[name] for name in one.operands]
        terms = [self._term(computation, operand, given) for operand in operands]
        if one.opcode == "fusion":
            inner = self._fused(one)
            return self._compared(inner, inner.instructions[inner.root], terms)
        if one.opcode != "compare" or "direction=LT" not in one.attributes:
            return None
        left, right = terms
        return (left, right) if left is not None and right is not None else None

    def _term(
        self,
        computation: Computation,
        one: Instruction,
        given: Sequence[Term | None] = (),
    ) -> Term | None:
        """An integer as a part of the loop's state and a constant beside it.

        Args:
          computation: Where it stands.
          one: What computes it.
          given: The parameters, inside a fusion.
        """
        operands = [computation.instructions[name] for name in one.operands]
        match one.opcode:
            case "constant":
                is_integer = re.fullmatch(r"-?\d+", one.inside)
                return Term(None, int(one.inside)) if is_integer else None
            case "parameter":
                at = int(one.inside)
                return given[at] if at < len(given) else None
            case "get-tuple-element":
                index = re.search(r"index=(\d+)", one.attributes)
                is_state = operands[0].opcode == "parameter"
                return Term(int(index[1]), 0) if is_state and index else None
            case "copy" | "bitcast":
                return self._term(computation, operands[0], given)
            case "add":
                terms = [self._term(computation, part, given) for part in operands]
                return _sum(*terms)
            case "fusion":
                terms = [self._term(computation, part, given) for part in operands]
                inner = self._fused(one)
                return self._term(inner, inner.instructions[inner.root], terms)
        return None

    # Memory.

    def _moved(self, computation: Computation, one: Instruction) -> int:
        """Bytes in memory that an instruction outside any fusion touches."""
        if one.opcode in ("copy-start", "slice-start"):
            # (destination, source, context): as much is read as is written.
            ends = one.shapes[:2]
            size = min(shape.laid_out for shape in ends)
            return sum(size for shape in ends if shape.hbm)
        # One array may be several operands, each by a view of its own.
        places: dict[str, list[int]] = {}
        for position, name in enumerate(one.operands):
            places.setdefault(_viewed(computation, name), []).append(position)
        read = 0
        for positions in places.values():
            operand = computation.instructions[one.operands[positions[0]]]
            if len(operand.shapes) == 1 and operand.shapes[0].hbm:
                touched = sum(self._touched(computation, one, i) for i in positions)
                read += min(operand.shapes[0].hbm, touched)
        return read + sum(self._written(computation, one))

    def _touched(self, computation: Computation, one: Instruction, at: int) -> int:
        """Bytes that an instruction reads of an operand that lies in memory."""
        operand = computation.instructions[one.operands[at]]
        whole = operand.shapes[0].laid_out
        if at == 0 and one.opcode in ("slice", "dynamic-slice", "gather"):
            return min(whole, one.shapes[0].laid_out)
        if at == 0 and one.opcode in ("dynamic-update-slice", "scatter"):
            return 0  # Updated in place.
        if one.opcode == "fusion":
            return self._fusion_reads(one.called["calls"][0], at)
        return whole

    def _fusion_reads(self, name: str, at: int) -> int:
        """Bytes that a fused computation reads of one of its operands."""
        if (name, at) not in self._reads:
            computation = self._module.computations[name]
            parameter = computation.parameters[at]
            read = self._reads_of(computation, parameter)
            whole = parameter.shapes[0].laid_out if parameter.shapes else 0
            self._reads[name, at] = min(whole, read)
        return self._reads[name, at]

    def _reads_of(self, computation: Computation, value: Instruction) -> int:
        read = 0
        for user, position in computation.users.get(value.name, ()):
            if user.opcode == "bitcast":
                read += self._reads_of(computation, user)
            elif user.opcode == "tuple" or user.target in _ASYNC:
                continue  # Handed on as it is.
            elif user.collective and self._is_continued(computation):
                continue  # Read by the fusion that began it.
            else:
                read += self._touched(computation, user, position)
        return read

    def _written(self, computation: Computation, one: Instruction) -> Iterator[int]:
        """Bytes in memory that an instruction writes, for each of its results."""
        if one.opcode == "fusion":
            inner = self._fused(one)
            root = inner.instructions[inner.root]
            if root.target == _ASYNC_START:
                # (the operand, the result, what they wait on ...)
                yield one.shapes[1].hbm
                return
            if root.target == _ASYNC_DONE:
                return
            parts = root.operands if root.opcode == "tuple" else (root.name,)
            for shape, name in zip(one.shapes, parts, strict=False):
                yield self._fusion_writes(inner, inner.instructions[name], shape)
            return
        for shape in one.shapes:
            yield self._stored(computation, one, shape)

    def _fusion_writes(
        self, inner: Computation, part: Instruction, shape: Shape
    ) -> int:
        while part.opcode == "bitcast":
            part = inner.instructions[part.operands[0]]
        if part.opcode == "parameter":
            return 0  # Handed on as it is.
        if part.collective and self._is_continued(inner):
            return 0
        return self._stored(inner, part, shape)

    @staticmethod
    def _stored(computation: Computation, one: Instruction, shape: Shape) -> int:
        """Bytes that reach memory: of an update in place, only the update."""
        updates = {"dynamic-update-slice": 1, "scatter": 2}.get(one.opcode)
        if not shape.hbm or updates is None:
            return shape.hbm
        update = computation.instructions[one.operands[updates]]
        return min(shape.hbm, update.shapes[0].laid_out)

    # Collectives.

    @staticmethod
    def _is_continued(computation: Computation) -> bool:
        """Whether the collectives of a fusion were begun by an earlier one.

        An asynchronous collective is a chain of fusions that each repeat it: one
        starts it, some compute meanwhile, the last waits.
        """
        values = computation.instructions.values()
        if any(one.target == _ASYNC_START for one in values):
            return False
        return any("chain_id=" in one.attributes for one in values if one.collective)

    def _collectives(
        self, computation: Computation, one: Instruction, chains: set[str]
    ) -> Iterator[Cost]:
        """The collectives that an instruction is, or holds when it is a fusion."""
        if one.collective:
            traffic = Traffic(1, _payload(computation, one))
            yield Cost(wires={self._wire(one.collective, one): traffic})
        inner = self._fused(one)
        for part in inner.instructions.values():
            if part.opcode == "fusion":
                yield from self._collectives(inner, part, chains)
            if not part.collective:
                continue
            channel = re.search(r"channel_id=(\d+)", part.attributes)
            chain = f"{part.collective} {channel[1] if channel else part.name}"
            if chain in chains:
                continue
            chains.add(chain)
            is_scatter = part.opcode == "all-reduce" and _keeps_its_part(inner, part)
            kind = "reduce-scatter" if is_scatter else part.collective
            wire = self._wire(kind, part)
            yield Cost(wires={wire: Traffic(1, _payload(inner, part))})

    def _between_slices(self, one: Instruction) -> Cost:
        """What goes from slice to slice, by way of their hosts.

        Each device sends what it has and receives the result. Slices lie behind one
        another along the first axis of the mesh.
        """
        size = one.shapes[0].hbm
        transfer = re.search(r'_xla_megascale_transfer_type="(\w+)"', one.attributes)
        if one.opcode == "recv" or not transfer:
            return Cost(size)
        kind = transfer[1].lower().replace("_", "-")
        kind = kind if kind in COLLECTIVES else "collective-permute"
        wire, payload = Wire(kind), one.shapes[0].bytes
        slices = re.search(r'_xla_megascale_target="\{([\d,:]+)\}', one.attributes)
        if self._mesh and slices:
            wire = Wire(kind, tuple(self._mesh)[:1], _numbers_in(slices[1]))
            payload *= wire.size if kind == "all-gather" else 1
        return Cost(size, wires={wire: Traffic(1, payload)})

    def _wire(self, kind: str, one: Instruction) -> Wire:
        """Which devices take part, as axes of the mesh.

        Devices have the numbers of their places in the mesh.
        """
        if not self._mesh:
            return Wire(kind)
        names, sizes = tuple(self._mesh), tuple(self._mesh.values())
        groups = _groups(one.attributes, math.prod(sizes))
        if groups is None:
            return Wire(kind)
        # (groups, their devices, axes): along which axes do those of a group differ?
        places = np.stack(np.unravel_index(groups, sizes), axis=-1)
        differ = np.any(places != places[:, :1], axis=(0, 1))
        axes = tuple(name for name, is_one in zip(names, differ, strict=True) if is_one)
        return Wire(kind, axes, math.prod(self._mesh[name] for name in axes))


_ASYNC_START, _ASYNC_DONE = "AsyncCollectiveStart", "AsyncCollectiveDone"
_ASYNC = (_ASYNC_START, _ASYNC_DONE)


_LISTED = re.compile(
    r"\b(?:replica_groups|source_target_pairs)=(\{(?:\{[\d,]*\},?)*\})"
)
_STRIDED = re.compile(r"\breplica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")

_NAMED = re.compile(r"\breplica_groups=mesh\[((?:'\w+'=\d+,?)+)\] ?\{((?:'\w+',?)+)\}")


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
    """How many numbers a list of numbers and ranges has.

    >>> _numbers_in("1,2"), _numbers_in("0:3,8")
    (2, 5)
    """
    ends = [part.split(":") for part in text.split(",")]
    return sum(int(part[-1]) - int(part[0]) + 1 for part in ends)


def _viewed(computation: Computation, name: str) -> str:
    """The instruction whose result an instruction is a view of, or itself."""
    one = computation.instructions[name]
    return _viewed(computation, one.operands[0]) if one.opcode == "bitcast" else name


def _payload(computation: Computation, one: Instruction) -> int:
    """Bytes of the whole array: before it is scattered, after it is gathered."""
    operands = sum(
        shape.bytes
        for name in one.operands
        for shape in computation.instructions[name].shapes
    )
    results = sum(shape.bytes for shape in one.shapes if shape.sizes or operands < 8)
    if one.opcode.endswith("-start"):
        results -= operands  # It names its operands among its results.
    return max(operands, results)


def _keeps_its_part(computation: Computation, one: Instruction) -> bool:
    """Whether only slices of a result are used."""
    users = [user for user, _ in computation.users.get(one.name, ())]
    return bool(users) and all(
        user.opcode == "dynamic-slice"
        or (
            user.opcode in ("get-tuple-element", "bitcast")
            and _keeps_its_part(computation, user)
        )
        for user in users
    )


def _sum(one: Term | None, other: Term | None) -> Term | None:
    if one is None or other is None or None not in (one.index, other.index):
        return None
    index = other.index if one.index is None else one.index
    return Term(index, one.offset + other.offset)
