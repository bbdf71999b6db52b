"""How long the schedule of a TPU kernel is, read from what the compiler dumps.

A bundle is what a core issues in one cycle. Their number is a lower bound of the
cycles that a kernel computes: it waits for no copy, and what runs only sometimes is
counted as if it ran always.
"""

import dataclasses
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
      part: Those of one turn of the loop inside a step.
      spills: Registers stored for want of room, in one turn of everything.
    """

    outside: int
    step: int
    part: int
    spills: int

    def cycles(self, steps: float, parts: int) -> float:
        """Cycles of a core that runs so many steps, of so many parts each."""
        return self.outside + steps * (self.step + parts * self.part)


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
        depths = [0, 0, 0]
        for line in path.read_text().splitlines():
            if bundle := _LINE.match(line):
                depths[min(len(bundle[1]), 2)] += 1
        yield name[1], Schedule(*depths, spills=_spills(directory, name[1]))


def _spills(directory: pathlib.Path, name: str) -> int:
    pattern = f"*-{name}-*final_hlo-static-per-bundle-utilization.txt"
    column = _UNITS.index("spill")
    return sum(
        int(line.split()[column])
        for path in directory.glob(pattern)
        for line in path.read_text().splitlines()
        if re.fullmatch(r"\d+( \d+){10}", line.strip())
    )
