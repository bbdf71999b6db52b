"""Faults of storage: power cuts, and run directories that are moved or replaced."""

import pathlib
import random
from collections.abc import Iterator
from typing import Any

from reslab.drill.disk import after_cut
from reslab.drill.found import fingerprint, newest_step
from reslab.drill.runs import SAVED_EVERY, STEPS, Fault, Workshop

Found = Iterator[str | None]

# Seconds of a step, so that faults have time to arrive.
PACE = 0.02
# Syncs with which a run begins: its first files.
FIRST_SYNCS = 12


def power(workshop: Workshop, count: int, chance: random.Random) -> Found:
    """After a power cut at any moment, a run ends bit for bit the same.

    One that said that it is saved, or finished, is. The cut is simulated: the process
    is killed, and the run resumes from what a disk may then hold, without most of what
    was never synced (`reslab.drill.disk`).
    """
    clean = workshop.clean("one")
    whole = fingerprint(clean)
    syncs = 0
    for number in range(count):
        place = workshop.new()
        place.mkdir()
        kind = ("begin", "sync", "stopped", "step", "finished")[number % 5]
        limit, fault = None, None
        if kind == "begin":
            limit = chance.randint(1, FIRST_SYNCS)
        elif kind == "sync":
            limit = chance.randint(FIRST_SYNCS, max(syncs, 10 * FIRST_SYNCS))
        elif kind == "stopped":
            fault = Fault("term", chance.randint(2, STEPS // 2))
        elif kind == "step":
            step = SAVED_EVERY * chance.randint(1, 4)
            fault = Fault("kill", step, chance.uniform(0.0, 10 * PACE))
        disk = place.with_name(f"{place.name}-disk")
        faults = {0: fault} if fault else None
        ended = workshop.train(
            place / "run", faults=faults, pace=PACE, disk=(place, disk, limit)
        )
        syncs = max(syncs, (disk / "log").stat().st_size)
        what = f"{kind}, sync {limit}, {fault}, {ended.codes}"
        found = place.with_name(f"{place.name}-found")
        after_cut(place, disk, found, chance)
        run = found / "run"
        if ended.codes == (42,) and newest_step(run) != newest_step(place / "run"):
            yield f"{what}: step {newest_step(place / 'run')} said to be saved is lost"
            continue
        if ended.codes == (0,) and not (run / "result.json").is_file():
            yield f"{what}: a finished run is lost"
            continue
        ended = workshop.train(run)
        is_same = ended.codes == (0,) and _came_to(run, whole)
        yield None if is_same else f"{what}: another end: {ended}"


def vanish(workshop: Workshop, count: int, chance: random.Random) -> Found:
    """Moved or replaced while it trains, a run ends with 70 and loses nothing saved.

    Nothing is written under the old name. Deleted, or without its record, it ends
    likewise.
    """
    clean = workshop.clean("one")
    whole = fingerprint(clean)
    kinds = ("rename", "other", "delete", "empty", "file", "unnamed", "shell")
    for number in range(count):
        run, gone = workshop.new(), workshop.new()
        kind = kinds[number % len(kinds)]
        step = chance.randint(SAVED_EVERY, STEPS - 2)
        if number % 2:  # Just after a save has begun.
            step -= step % SAVED_EVERY
        fault = Fault(kind, step, paths=(gone, clean))
        ended = workshop.train(run, faults={0: fault}, pace=PACE)
        what = f"{kind} at step {step}: {ended}"
        # The visible parts of a message: one line.
        said = run.with_name(f"{run.name}-0.txt").read_text()
        told = "deleted or changed" if kind == "unnamed" else "deleted or replaced"
        if ended.codes != (70,) or told not in said:
            yield what
            continue
        if "Traceback" in said:
            yield f"{what}, with a traceback"
            continue
        if kind == "unnamed":
            for path in gone.iterdir():
                path.rename(run / path.name)
            gone = run
        elif kind == "shell":
            (run / "checkpoints").rename(gone / "checkpoints")
        expected = {"other": _contents(clean), "empty": {}, "shell": {}}.get(kind)
        expected = b"a file" if kind == "file" else expected
        if gone != run and _contents(run) != expected:
            yield f"{what}, and the old name is written to"
        elif kind == "delete":
            yield None
        else:
            ended = workshop.train(gone)
            is_same = ended.codes == (0,) and _came_to(gone, whole)
            yield None if is_same else f"{kind} at step {step}, another end: {ended}"


def _came_to(run: pathlib.Path, whole: dict[str, Any]) -> bool:
    try:
        return fingerprint(run) == whole
    except (OSError, ValueError, LookupError):  # The files are not those of a run.
        return False


def _contents(path: pathlib.Path) -> dict[str, bytes] | bytes | None:
    """Returns the contents of a directory or file, or None if it is missing."""
    if path.is_file():
        return path.read_bytes()
    if not path.is_dir():
        return None
    return {
        str(p.relative_to(path)): p.read_bytes() if p.is_file() else b""
        for p in path.rglob("*")
    }
