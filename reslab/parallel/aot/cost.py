"""Cost of a compiled TPU program, read from its text.

XLA's own `cost_analysis` counts the body of a loop once, so a model scanned over
its layers appears as cheap as one layer. Here every loop counts as often as it runs.

The time of a step is a timeline: a compiled program is a schedule, its instructions
run in the order of its text, and operations begun by a `-start` overlap them
until a `-done` waits for it (`timeline.py`). What runs takes the longer of

    computing   the compiler's cycles, those of a Pallas kernel by its own schedule
    memory      the bytes that it moves, at the bandwidth of the memory
"""

import dataclasses
import re
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

from reslab.parallel.aot.bundles import Cycles
from reslab.parallel.aot.hlo import (
    COLLECTIVES,
    KERNEL,
    Computation,
    Instruction,
    Module,
    parse,
)
from reslab.parallel.aot.loops import trips
from reslab.parallel.aot.moved import COPIES, Movement
from reslab.parallel.aot.timeline import MEMORY, Timeline
from reslab.parallel.aot.topology import Chip
from reslab.parallel.aot.wires import (
    ASYNC_DONE,
    Sent,
    Traffic,
    Wire,
    between_slices,
    collectives,
)

# The compiler's own cycles are 0.88 to 0.98 of the peak for matrix products on v5e
# and v5p. For loops they were 2.2 to 2.8 times the measured time (normalizations
# on a TPU7x, published by tokamax), the same factor over shapes: divided by 2.5.
LOOP_CYCLES_OVER_MEASURED = 2.5

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_UNKNOWN_CYCLES = str(2**63 - 1)  # The compiler's placeholder for an unknown value.

# Operations that name or view existing arrays.
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


@dataclasses.dataclass(frozen=True)
class Cost:
    """Work of one device in one run of a program.

    Attributes:
      hbm_bytes: Bytes read from and written to its memory, as they lie there:
        tiles are padded, and what stays in the chip's own memory is not counted.
        A slice of a larger array counts what is sliced.
      copies: Instructions that only move or lay out again, with their bytes in
        memory, read and written; prefetches into the chip are not among them.
      wires: Collectives by kind and axes of the mesh, with the bytes of the whole
        array: what a gather results in, what a scatter starts from. A collective
        that XLA spreads over several fusions counts once, an all-reduce whose
        each device keeps its own part as the reduce-scatter that it is. What several
        slices send each other has the first axis, and the bytes of a device's part.
      kernels: Pallas kernels, with the bytes of their operands and results.
      by_kernel: The same for each, by name.
      seconds: Estimate, by the timeline.
      waited: Those of them in which nothing runs: for copies and collectives.
      memory: Seconds that its bytes take at the bandwidth of the memory, but for
        those that a kernel leaves out.
      unknown_loops: Loops whose length could not be read, counted once.
      unknown_kernels: Kernels without a schedule, which take their bytes' time.
    """

    hbm_bytes: int = 0
    copies: Traffic = dataclasses.field(default_factory=Traffic)
    wires: Mapping[Wire, Traffic] = dataclasses.field(default_factory=dict)
    kernels: Traffic = dataclasses.field(default_factory=Traffic)
    by_kernel: Mapping[str, Traffic] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    waited: float = 0.0
    memory: float = 0.0
    unknown_loops: int = 0
    unknown_kernels: int = 0

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
            self.waited + other.waited,
            self.memory + other.memory,
            self.unknown_loops + other.unknown_loops,
            self.unknown_kernels + other.unknown_kernels,
        )

    def __mul__(self, times: int) -> "Cost":
        return Cost(
            self.hbm_bytes * times,
            self.copies * times,
            {wire: traffic * times for wire, traffic in self.wires.items()},
            self.kernels * times,
            {name: traffic * times for name, traffic in self.by_kernel.items()},
            self.seconds * times,
            self.waited * times,
            self.memory * times,
            self.unknown_loops,
            self.unknown_kernels,
        )


def _together(one: Mapping[Any, Traffic], other: Mapping[Any, Traffic]) -> Any:
    keys, none = dict.fromkeys((*one, *other)), Traffic()
    return {key: one.get(key, none) + other.get(key, none) for key in keys}


@dataclasses.dataclass(frozen=True)
class Machine:
    """Chip and mesh, as far as a program's time depends on them.

    Attributes:
      chip: The clock of its cores, and the bandwidth of its memory.
      mesh: Size of each axis of the mesh that the program was compiled for, in order;
        collectives are told apart by axes where it is given.
      link_seconds: Seconds that a collective of given bytes takes alone; without
        it, collectives take no time.
      kernels: Cycles of Pallas kernels, by the name of their instruction. One that is
        not among them takes its bytes' time.
      shares: How much of what a kernel does under a condition is done, by what its
        name begins with, where the caller knows: 0.75 where a causal mask empties
        one of four blocks. All of it where it is not given.
    """

    chip: Chip
    mesh: Mapping[str, int] = dataclasses.field(default_factory=dict)
    link_seconds: Callable[[Wire, Traffic], float] | None = None
    kernels: Mapping[str, Cycles] = dataclasses.field(default_factory=dict)
    shares: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def share(self, name: str) -> float:
        """Returns the share of its work that a kernel does, by its name."""
        stems = (stem for stem in self.shares if name.startswith(stem))
        return next((self.shares[stem] for stem in stems), 1.0)


def program_cost(text: str, machine: Machine) -> Cost:
    """Adds up a compiled and scheduled program, loops as often as they run.

    Args:
      text: `compiled.as_text()`.
      machine: What it was compiled for.

    Returns:
      The cost on one device.

    Raises:
      ReslabError: If the text is not a compiled program.
    """
    module = parse(text)
    cost = _Reader(module, machine).computation(module.entry)
    wires = sorted(
        cost.wires.items(), key=lambda one: (COLLECTIVES.index(one[0].kind), one[0])
    )
    return dataclasses.replace(cost, wires=dict(wires))


class _Reader:
    """Walks a module from its entry."""

    def __init__(self, module: Module, machine: Machine):
        self._module = module
        self._machine = machine
        self._moved = Movement(module)
        self._costs: dict[str, Cost] = {}

    def computation(self, name: str) -> Cost:
        """The cost of one run; computations are shared, so each is read once."""
        if name not in self._costs:
            computation = self._module.computations[name]
            timeline, chains, total = Timeline(), set(), Cost()
            for one in computation.instructions.values():
                cost = self._instruction(computation, one)
                sent = [s for s in self._sent(computation, one) if s.key not in chains]
                chains |= {collective.key for collective in sent}
                self._schedule(timeline, computation, one, cost, sent)
                total += cost
                for collective in sent:
                    total += Cost(wires={collective.wire: collective.traffic})
            timeline.finish()
            self._costs[name] = dataclasses.replace(
                total,
                seconds=timeline.now,
                waited=total.waited + timeline.waited,
            )
        return self._costs[name]

    # Time.

    def _schedule(
        self,
        timeline: Timeline,
        computation: Computation,
        one: Instruction,
        cost: Cost,
        sent: list[Sent],
    ) -> None:
        """Puts an instruction on the timeline.

        Args:
          timeline: What ran before it.
          computation: Where it stands.
          one: The instruction.
          cost: Its own cost.
          sent: The collectives that it begins.
        """
        if one.opcode.endswith("-done"):
            timeline.wait(_started(computation, one))
            return
        if one.opcode in COPIES or one.opcode == "async-start":
            # Links count in the wrapped operation; its bytes are the memory's.
            links = self._links(cost.wires.items())
            timeline.start(one.name, {MEMORY: cost.memory, **links})
            return
        if not one.collective:
            timeline.run(cost.seconds, cost.memory)
        for collective in sent:
            link = self._links([(collective.wire, collective.traffic)])
            timeline.start(collective.key, link)
        if one.opcode == "send" or one.opcode.endswith("-start"):
            return  # Its `-done` waits for it.
        inner = self._module.fused(one)
        parts = inner.instructions.values()
        if any(part.target == ASYNC_DONE for part in parts) or not any(
            "chain_id=" in part.attributes for part in parts if part.collective
        ):
            for collective in self._sent(computation, one):
                timeline.wait(collective.key)

    def _links(self, wires: Any) -> dict[Hashable, float]:
        """Seconds by the axes of the mesh whose links collectives take."""
        found: dict[Hashable, float] = {}
        if self._machine.link_seconds:
            for wire, traffic in wires:
                taken = self._machine.link_seconds(wire, traffic)
                found[wire.axes] = found.get(wire.axes, 0.0) + taken
        return found

    def _seconds(self, one: Instruction, memory: float) -> float:
        """Returns the compute time of an operation that is not a kernel."""
        cycles = _CYCLES.search(one.attributes)
        if not cycles or cycles[1] == _UNKNOWN_CYCLES:
            return memory
        seconds = int(cycles[1]) / self._machine.chip.clock
        return seconds if self._multiplies(one) else seconds / LOOP_CYCLES_OVER_MEASURED

    def _multiplies(self, one: Instruction) -> bool:
        return one.opcode in ("dot", "convolution") or any(
            self._multiplies(part)
            for part in self._module.fused(one).instructions.values()
        )

    def _kernel(self, one: Instruction, moved: int) -> Cost:
        """A kernel computes by its schedule, wherever its operands lie."""
        name = re.sub(r"\.\d+$", "", one.name)
        traffic, share = Traffic(1, moved), self._machine.share(name)
        cycles = self._machine.kernels.get(one.name)
        seconds = 0.0
        if cycles:
            computed = cycles.always + share * cycles.guarded
            seconds = computed / self._machine.chip.clock
        return Cost(
            moved,
            kernels=traffic,
            by_kernel={name: traffic},
            seconds=seconds,
            memory=share * self._memory(moved),
            unknown_loops=cycles.unknown_loops if cycles else 0,
            unknown_kernels=cycles is None,
        )

    # All other operations.

    def _sent(self, computation: Computation, one: Instruction) -> Iterator[Sent]:
        """The collectives that an instruction begins or repeats."""
        if one.opcode in ("send", "recv"):
            return between_slices(one, self._machine.mesh)
        if one.opcode.endswith(("-done", "-update")):
            return iter(())
        return collectives(self._module, computation, one, self._machine.mesh)

    def _instruction(self, computation: Computation, one: Instruction) -> Cost:
        """The cost of one instruction outside any fusion, but for its collectives."""
        if one.opcode in _FREE or one.opcode.endswith(("-done", "-update")):
            return Cost()
        if one.opcode == "while":
            return self._loop(computation, one)
        if one.opcode in ("call", "async-start"):
            (name,) = one.called.get("to_apply") or one.called["calls"]
            return self.computation(name)
        if one.opcode == "conditional":
            branches = [
                self.computation(name)
                for names in one.called.values()
                for name in names
            ]
            return max(branches, key=lambda cost: (cost.seconds, cost.hbm_bytes))
        if one.opcode == "custom-call" and one.target in _FREE_CALLS:
            return Cost()
        if one.opcode in ("send", "recv"):
            size = one.shapes[0].hbm
            return Cost(size, memory=self._memory(size))
        moved = self._moved.of(computation, one)
        if one.target == KERNEL:
            return self._kernel(one, moved)
        copies = Traffic()
        if one.opcode == "copy" and moved:
            copies = Traffic(1, moved)
        if one.opcode == "copy-start" and all(s.hbm for s in one.shapes[:2]):
            copies = Traffic(1, moved)
        memory = self._memory(moved)
        return Cost(moved, copies, seconds=self._seconds(one, memory), memory=memory)

    def _memory(self, moved: int) -> float:
        return moved / self._machine.chip.hbm_bandwidth

    def _loop(self, computation: Computation, one: Instruction) -> Cost:
        (condition,), (body,) = one.called["condition"], one.called["body"]
        inside = self.computation(body) + self.computation(condition)
        turns = trips(self._module, computation, one)
        return inside + Cost(unknown_loops=1) if turns is None else inside * turns


def _started(computation: Computation, one: Instruction) -> str:
    """Finds the `-start` that a `-done` waits for."""
    name = one.operands[0]
    while name in computation.instructions:
        before = computation.instructions[name]
        if not before.opcode.endswith("-update") and before.opcode != "bitcast":
            break
        name = before.operands[0]
    return name
