"""The text of a compiled program: its arrays, instructions and computations."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

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
# Target of custom calls that are Pallas kernels.
KERNEL = "tpu_custom_call"

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


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array of a program: dtype, sizes and layout.

    >>> Shape.all("bf16[3,64]{1,0:T(8,128)(2,1)}")[0].laid_out
    2048
    """

    dtype: str
    sizes: tuple[int, ...]
    layout: str = ""

    @classmethod
    def all(cls, text: str) -> tuple["Shape", ...]:
        """Yields every array in the text of a type."""
        return tuple(
            cls(dtype, tuple(int(s) for s in re.findall(r"\d+", sizes)), layout or "")
            for dtype, sizes, layout in _SHAPE.findall(text)
            if dtype in _BITS or dtype.startswith("f8")
        )

    @property
    def bits(self) -> int:
        """Bits of an element."""
        return _BITS.get(self.dtype, 8)  # 8 covers the small floats.

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
    def space(self) -> int:
        """The number of the memory that it lies in: 0 is the device's."""
        found = re.search(r"S\((\d+)\)", self.layout)
        return int(found[1]) if found else 0

    @property
    def hbm(self) -> int:
        """Bytes in the device's memory; 0 for what lies in the chip or a host."""
        return 0 if self.space else self.laid_out


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
        """Returns the target of a custom call."""
        found = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return found[1] if found else None

    @property
    def collective(self) -> str | None:
        """Returns the kind of a collective (or of its start), or None."""
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
        """Maps each instruction to its readers and operand positions."""
        found: dict[str, list[tuple[Instruction, int]]] = {}
        for one in self.instructions.values():
            for position, name in enumerate(one.operands):
                found.setdefault(name, []).append((one, position))
        return found


@dataclasses.dataclass(frozen=True)
class Module:
    """A program: its computations by name, and the one that it begins with."""

    computations: dict[str, Computation]
    entry: str

    def fused(self, one: Instruction) -> Computation:
        """The computation of a fusion; an empty one for any other instruction."""
        names = one.called.get("calls", []) if one.opcode == "fusion" else []
        return self.computations[names[0]] if names else Computation({})


def parse(text: str) -> Module:
    """Reads `compiled.as_text()`.

    Raises:
      ReslabError: If the text is not a compiled program.
    """
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
    return Module(computations, entry)


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
    # A tuple type contains parentheses.
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
    """Returns the index of the parenthesis that closes the one at `begin`."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, begin):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.start()
    raise ReslabError("compiled program: a parenthesis is not closed")
