"""Bytes that the instructions of a compiled program move to and from memory."""

from collections.abc import Iterator

from reslab.parallel.aot.hlo import Computation, Instruction, Module, Shape
from reslab.parallel.aot.wires import ASYNC, ASYNC_DONE, ASYNC_START, is_continued

# Copies that run beside other operations: (source, destination, context).
COPIES = ("copy-start", "slice-start")


class Movement:
    """Counts them for one program.

    Args:
      module: The program.
    """

    def __init__(self, module: Module):
        self._module = module
        self._reads: dict[tuple[str, int], int] = {}

    def of(self, computation: Computation, one: Instruction) -> int:
        """Bytes in memory that an instruction outside any fusion touches."""
        if one.opcode in COPIES:
            # Reads as much as it writes.
            ends = one.shapes[:2]
            size = min(shape.laid_out for shape in ends)
            return sum(size for shape in ends if shape.hbm)
        # One array may be several operands, each through its own view.
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
            elif user.opcode == "tuple" or user.target in ASYNC:
                continue  # Passed on unchanged.
            elif user.collective and is_continued(computation):
                continue  # Read by the fusion that started it.
            else:
                read += self._touched(computation, user, position)
        return read

    def _written(self, computation: Computation, one: Instruction) -> Iterator[int]:
        """Bytes in memory that an instruction writes, for each of its results."""
        if one.opcode == "fusion":
            inner = self._module.fused(one)
            root = inner.instructions[inner.root]
            if root.target == ASYNC_START:
                # (operand, result, semaphores ...)
                yield one.shapes[1].hbm
                return
            if root.target == ASYNC_DONE:
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
            return 0  # Passed on unchanged.
        if part.collective and is_continued(inner):
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


def _viewed(computation: Computation, name: str) -> str:
    """The instruction whose result an instruction is a view of, or itself."""
    one = computation.instructions[name]
    return _viewed(computation, one.operands[0]) if one.opcode == "bitcast" else name
