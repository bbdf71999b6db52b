"""How long the schedule of a TPU kernel is, read from what the compiler dumps.

A bundle is what a core issues in one cycle. Their number is a lower bound of the
cycles that a kernel computes: it waits for no copy, and what runs only sometimes is
counted as if it ran always.
"""

import dataclasses
import itertools
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator, Mapping

_LINE = re.compile(r"\s*(?:0x[0-9a-f]+|0)\s+(?:[A-Z]{2})?\s*:\s*(>*)\s*\{")
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
          chunks: Steps of which one alone goes through all loops but the largest.
        """
        largest = max(self.loops, default=0)
        others = sum(self.loops) - largest
        return self.step + parts * (largest + others / chunks)


def options(directory: str) -> str:
    """What `LIBTPU_INIT_ARGS` must hold, before libtpu wakes up, to dump schedules."""
    return (
        f"--xla_jf_dump_to={directory} --xla_jf_dump_llo_text=true "
        "--xla_jf_dump_llo_pass_label_regex=(final).*"
    )


def environment() -> tuple[Mapping[str, str], str]:
    """Variables for a process of its own that dumps schedules, and where to."""
    directory = tempfile.mkdtemp(prefix="reslab_schedules_")
    return {**os.environ, "LIBTPU_INIT_ARGS": options(directory)}, directory


def dumped(directory: str) -> dict[str, Schedule]:
    """The schedules of what was compiled since the last call, by name.

    Args:
      directory: Where they were dumped; it is emptied.
    """
    found = dict(_read(pathlib.Path(directory)))
    for path in pathlib.Path(directory).iterdir():
        path.unlink()
    return found


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
