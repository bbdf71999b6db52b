"""Faults planted on purpose: what a run survives, as survived/injected.

Every row breaks small runs on this machine's CPU in one way, many times, and counts
the times that end as promised: bit for bit as if nothing had happened, or with an
explicit error. Nothing of the run is stubbed; processes are killed, files damaged,
disks filled.
"""

import dataclasses
import json
import pathlib
import random
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from reslab.core.errors import ReslabError, nearest
from reslab.drill import exchange, rows, storage
from reslab.drill.commands import Program
from reslab.drill.runs import Workshop


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Outcome of a row.

    Attributes:
      row: Its name.
      promise: What was promised.
      injected: Faults planted.
      survived: Those after which the promise held.
      seconds: How long it took.
      broken: What went wrong, a line for each other fault.
    """

    row: str
    promise: str
    injected: int
    survived: int
    seconds: float
    broken: tuple[str, ...]


# Seconds between two lines about a row in progress.
TELL_EVERY = 30.0
# Row, faults in a usual run, faults in a nightly one.
ROWS: dict[str, tuple[Callable, int, int]] = {
    "kill": (rows.kill, 4, 200),
    "stop": (rows.stop, 2, 50),
    "damage": (rows.damage, 60, 1000),
    "storage": (rows.storage, 3, 20),
    "power": (storage.power, 5, 50),
    "vanish": (storage.vanish, 7, 28),
    "reshard": (rows.reshard, 3, 20),
    "processes": (rows.processes, 3, 40),
    "repeat": (rows.repeat, 4, 12),
    "bad_steps": (rows.bad_steps, 10, 150),
    "exchange": (exchange.exchange, 12, 60),
    "bad_input": (rows.bad_input, 100, 300),
    "hostile": (rows.hostile, 20, 160),
}


def drill(
    directory: str | pathlib.Path,
    names: Sequence[str] = (),
    *,
    program: Program,
    is_nightly: bool = False,
    seed: int = 0,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Outcome]:
    """Plants faults and counts what is survived.

    Args:
      directory: For the runs; what is in it is deleted.
      names: Rows; all of them if empty.
      program: Runs a command line and returns its exit code.
      is_nightly: Whether to plant the many faults of a night.
      seed: Chooses where they are planted.
      tell: Called with a line about every row, and with its progress.

    Returns:
      The outcome of every row.

    Raises:
      ReslabError: If there is no such row.
    """
    for name in names:
        if name not in ROWS:
            raise ReslabError(f"unknown row {name!r}", hint=nearest(name, ROWS))
    directory = pathlib.Path(directory)
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)

    def one(name: str) -> Outcome:
        plant, usual, many = ROWS[name]
        count = many if is_nightly else usual
        began, injected, broken = time.monotonic(), 0, []
        chance, told = random.Random(f"{seed} {name}"), began
        for found in plant(workshop, count, chance):
            injected += 1
            if found is not None:
                broken.append(found)
            if time.monotonic() > told + TELL_EVERY:
                told = time.monotonic()
                left = (told - began) / injected * (count - injected)
                tell(f"{name:10} {injected}/{count}, {left:.0f} s to go")
        outcome = Outcome(
            row=name,
            promise=(plant.__doc__ or "").splitlines()[0],
            injected=injected,
            survived=injected - len(broken),
            seconds=round(time.monotonic() - began, 1),
            broken=tuple(broken),
        )
        line = f"{name:10} {outcome.survived}/{injected}  {outcome.seconds:.0f} s"
        tell("\n  ".join((line, *broken)))
        return outcome

    # Two rows run at once: much of a fault is waiting.
    with Workshop(directory, program) as workshop, ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, names or ROWS))


def as_json(outcomes: Sequence[Outcome]) -> str:
    """The outcomes as JSON."""
    return json.dumps([dataclasses.asdict(outcome) for outcome in outcomes], indent=1)
