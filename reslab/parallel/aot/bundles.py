"""Length of a TPU kernel's schedule, read from compiler dumps.

A bundle is what a core issues in one cycle. Their number is a lower bound of the
cycles that a kernel computes: it waits for no copy, and what runs only sometimes is
counted as if it ran always.
"""

import contextlib
import dataclasses
import itertools
import os
import pathlib
import re
from collections.abc import Iterator, Mapping

from reslab.runtime.files import scratch_directory

_LINE = re.compile(r"\s*(?:0x[0-9a-f]+|0)\s+(?:[A-Z]{2})?\s*:\s*(>*)\s*\{")
_BUNDLE = re.compile(r"\s*(?:0x[0-9a-f]+|0)\s+(?:[A-Z]{2})?\s*:")
_EXIT = re.compile(r"scmp\.ge\.s32\.totalorder \S+, (\S+) /\* loop exit test")
_BRANCH = re.compile(r"sbr\.rel \(!?%\w+\) target = \$region(\d+)")
_BEGUN = re.compile(r"Start region (\d+)")
_ENDED = re.compile(r"empty region (\d+)")
_STAGE = re.compile(r"iteration index, stage = (\d+)")
_FILE = re.compile(r"\d+-(.*)-\d+-final_bundles\.txt")
_UNITS = ("matmul", "matpush", "xlu", "valu", "vpop", "eup")
_UNITS += ("vload", "fill", "vstore", "spill", "salu")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Bundles of a kernel.

    Attributes:
      outside: Those outside of all loops.
      step: Those of one step of the grid, but for the loop inside.
      loops: Those of one turn of each loop inside a step.
      spills: Registers stored for want of room, in one turn of everything.
    """

    outside: int
    step: int
    loops: tuple[int, ...]
    spills: int

    def step_cycles(self, parts: int, chunks: int = 1) -> float:
        """Cycles of a step whose loops turn so often.

        Args:
          parts: Turns of a loop.
          chunks: Number of steps; a single one runs all loops but the largest.
        """
        largest = max(self.loops, default=0)
        others = sum(self.loops) - largest
        return self.step + parts * (largest + others / chunks)


@dataclasses.dataclass(frozen=True)
class Cycles:
    """Work of a core in one call of a kernel, loops by their trip counts.

    Where two cores share the grid, the compiler has halved its loop.

    Attributes:
      always: Cycles of what every step of its grid does.
      guarded: Those of what stands under a condition, as if it always held: the
        first and the last step's work, blocks that a mask empties, sources that
        are not read yet.
      unknown_loops: Loops whose length is not in the schedule, counted once.
    """

    always: float
    guarded: float = 0.0
    unknown_loops: int = 0


def options(directory: str) -> str:
    """Returns the `LIBTPU_INIT_ARGS` with which libtpu dumps schedules."""
    return (
        f"--xla_jf_dump_to={directory} --xla_jf_dump_llo_text=true "
        "--xla_jf_dump_llo_pass_label_regex=(final).*"
    )


@contextlib.contextmanager
def environment() -> Iterator[tuple[Mapping[str, str], str]]:
    """Variables for a process of its own that dumps schedules, and where to."""
    with scratch_directory("reslab.schedules-") as made:
        directory = str(made)
        yield {**os.environ, "LIBTPU_INIT_ARGS": options(directory)}, directory


def dumped(directory: str) -> dict[str, Schedule]:
    """The schedules of what was compiled since the last call, by name.

    Args:
      directory: Where they were dumped; it is emptied.
    """
    found = dict(_read(pathlib.Path(directory)))
    for path in pathlib.Path(directory).iterdir():
        path.unlink()
    return found


def dumped_cycles(directory: str, stem: str) -> Cycles | None:
    """Returns the cycles of the kernel of this name that was compiled last.

    Args:
      directory: Where schedules were dumped; it is emptied.
      stem: What the name begins with.
    """
    found = None
    for path in sorted(pathlib.Path(directory).iterdir()):
        name = _FILE.fullmatch(path.name)
        if name and name[1].startswith(stem) and "schedule-analysis" not in path.name:
            found = kernel_cycles(path.read_text())
        path.unlink()
    return found


@dataclasses.dataclass
class _Part:
    """A loop or a guarded region that is being read.

    Attributes:
      regions: Numbers of those that begin where it does.
      is_loop: Whether it is a loop.
      always: Its bundles so far; in a pipeline, those of every turn.
      step: Bundles of what a pipeline does at each step of the grid.
      guarded: Bundles of what stands under a condition.
      turns: How often it turns, if it is known.
      stages: Turns of a pipeline beside one for each step: the first ones only
        fetch, the last ones only store.
      unknown: Loops in it whose length is not known.
    """

    regions: frozenset[str]
    is_loop: bool
    always: float = 0.0
    step: float = 0.0
    guarded: float = 0.0
    turns: int | None = None
    stages: int = 0
    unknown: int = 0


def kernel_cycles(text: str) -> Cycles:
    r"""Reads the final bundles of a kernel.

    Args:
      text: What the compiler dumps of it.

    >>> lines = ["0 : { nop }", "0x1 LB: > { x } /* Start region 7 */"]
    >>> lines += ["0x2 : { %p = scmp.ge.s32.totalorder %s, 5 /* loop exit test */ }"]
    >>> lines += ["0x3 : { sbr.rel (!%p) target = $region7 }"]
    >>> kernel_cycles("\n".join(lines)).always
    16.0
    """
    stack = [_Part(frozenset(), False)]
    for line in text.splitlines():
        if not _BUNDLE.match(line):
            continue
        for ended in _ENDED.findall(line):
            if len(stack) > 1 and not stack[-1].is_loop and ended in stack[-1].regions:
                _close(stack)
        if " LB:" in line:
            stack.append(_Part(frozenset(_BEGUN.findall(line)), True))
        here = stack[-1]
        here.always += 1
        here.stages = max([here.stages, *map(int, _STAGE.findall(line))])
        if limit := _EXIT.search(line):
            here.turns = int(limit[1]) if limit[1].isdigit() else None
        if branch := _BRANCH.search(line):
            loops = [part for part in stack if part.is_loop]
            if any(branch[1] in part.regions for part in loops):
                while not (stack[-1].is_loop and branch[1] in stack[-1].regions):
                    _close(stack)
                _close(stack)
            else:
                stack.append(_Part(frozenset([branch[1]]), False))
    while len(stack) > 1:
        _close(stack)
    return Cycles(stack[0].always, stack[0].guarded, stack[0].unknown)


def _close(stack: list[_Part]) -> None:
    """Adds the innermost part to the one around it."""
    part, around = stack.pop(), stack[-1]
    around.unknown += part.unknown
    if part.is_loop:
        turns = part.turns or 1
        steps = max(1, turns - part.stages)
        around.unknown += part.turns is None
        around.always += part.always * turns + part.step * steps
        around.guarded += part.guarded * steps
    elif around.is_loop and around.stages:
        around.step += part.always
        around.guarded += part.guarded
    else:
        around.guarded += part.always + part.guarded


def _read(directory: pathlib.Path) -> Iterator[tuple[str, Schedule]]:
    for path in sorted(directory.glob("*-final_bundles.txt")):
        name = _FILE.fullmatch(path.name)
        if name is None or "schedule-analysis" in path.name:
            continue
        found = [_LINE.match(line) for line in path.read_text().splitlines()]
        depths = [min(len(bundle[1]), 2) for bundle in found if bundle]
        runs = [(depth, len(list(run))) for depth, run in itertools.groupby(depths)]
        loops = tuple(length for depth, length in runs if depth == 2)
        yield (
            name[1],
            Schedule(
                depths.count(0), depths.count(1), loops, _spills(directory, name[1])
            ),
        )


def _spills(directory: pathlib.Path, name: str) -> int:
    pattern = f"*-{name}-*final_hlo-static-per-bundle-utilization.txt"
    column = _UNITS.index("spill")
    return sum(
        int(line.split()[column])
        for path in directory.glob(pattern)
        for line in path.read_text().splitlines()
        if re.fullmatch(r"\d+( \d+){10}", line.strip())
    )
