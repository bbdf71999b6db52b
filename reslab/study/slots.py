"""Slots of a sweep: what each is told to do, and what came of it."""

import os
import pathlib
import re
import signal
import sys
from typing import Any

from reslab.core import config as configs
from reslab.core import imports, own
from reslab.core.errors import ReslabError
from reslab.observe.metrics import senders
from reslab.runtime.exits import INTERNAL, STOPPED
from reslab.runtime.inside import open_inside
from reslab.runtime.stopping import StopRequest
from reslab.study.plan import PlannedRun
from reslab.study.pool import Ended, Pool, Worker, wait_for
from reslab.train.run import Run

# Runs that are trained together: one, or the seeds of a case.
Pack = tuple[PlannedRun, ...]


class SweepStopped(Exception):
    """The sweep was asked to stop; every active run has been saved."""


def _told(pack: Pack, cores: int) -> dict[str, Any]:
    """A worker's input: the config, and what a person's study allows."""
    run = pack[0]
    named = {module for _, module in configs.outside(dict(configs.flatten(run.config)))}
    named |= {*senders(run.config.train.writers)}
    return {
        "config": configs.canonical_json(run.config),
        "allowed": sorted(named | set(imports.allowed())),
        "cores": cores,
        "pack": len(pack),
    }


class Slots:
    """The slots in which runs execute, each with its share of the machine."""

    def __init__(
        self,
        directory: pathlib.Path,
        jobs: int,
        cores: int,
        pool: Pool,
        stop: StopRequest,
    ):
        self._directory = directory
        self._stop = stop
        self._jobs = jobs
        self._cores = cores
        self._pool = pool
        self._log_begins: dict[PlannedRun, int] = {}
        self._going: dict[int, tuple[Pack, Worker]] = {}

    def __len__(self) -> int:
        return self._jobs

    def _worker(self, slot: int, run: PlannedRun) -> Worker:
        parts = own.digests(configs.modules(run.config))
        return self._pool.worker(slot, run.config.mesh.cpu_devices, parts)

    def check(self, slot: int, pack: Pack) -> dict[str, Any]:
        """Asks the worker of a slot what each run of a pack costs.

        Raises:
          ReslabError: If the runs cannot be built.
          SweepStopped: If the sweep is asked to stop.
        """
        run = pack[0]
        worker = self._worker(slot, run)
        worker.ask(_told(pack, self._cores))
        try:
            while (answer := worker.answer()) is None:
                wait_for([worker], 0.2)
                if self._stop.is_set:
                    raise SweepStopped
        except Ended as end:
            raise ReslabError(
                f"case {run.case!r} cannot be built", got=end.said
            ) from None
        if "error" in answer:
            raise ReslabError(f"case {run.case!r}: {answer['error']}")
        return answer

    def free(self) -> list[int]:
        """Returns the idle slots."""
        return [slot for slot in range(self._jobs) if slot not in self._going]

    def start(self, slot: int, pack: Pack) -> None:
        """Starts runs in a slot; what they say goes to `logs/`."""
        asked = []
        for run in pack:
            directory = self._directory / run.directory
            (directory / "failed.json").unlink(missing_ok=True)
            log = self._log(run)
            log.parent.mkdir(exist_ok=True)
            with open_inside(log, "a") as file:
                if run is not pack[0]:
                    first = self._log(pack[0]).name
                    print(f"trained with seed {pack[0].seed}: see {first}", file=file)
                self._log_begins[run] = file.tell()
            asked.append(
                {
                    "config": configs.canonical_json(run.config),
                    # Absolute: a part may change the working directory.
                    "directory": str(directory.resolve()),
                    "log": str(log.resolve()),
                }
            )
        worker = self._worker(slot, pack[0])
        worker.ask(_told(pack, self._cores) | {"runs": asked})
        self._going[slot] = pack, worker

    def wait(self, seconds: float) -> None:
        """Waits until a run has ended, but not longer than that."""
        wait_for([worker for _, worker in self._going.values()], seconds)

    def reap(self) -> list[PlannedRun]:
        """Takes out the runs that have ended, and records those that failed."""
        ended = []
        for slot, (pack, worker) in list(self._going.items()):
            said = ""
            try:
                if (answer := worker.answer()) is None:
                    continue
                codes = answer["codes"]
            except Ended as end:
                # A part may end the process with any code, 0 as well.
                codes, said = [end.code or INTERNAL] * len(pack), end.said
            del self._going[slot]
            if any(codes):  # The next run starts in a new process.
                self._pool.dismiss(slot)
            for run, code in zip(pack, codes, strict=True):
                ended.append(run)
                # Some runs of a process may have ended before it.
                is_done = Run(self._directory / run.directory).result() is not None
                # Stopped on request before it could save: not a failure.
                if code not in (0, STOPPED, -signal.SIGTERM) and not is_done:
                    self._record_failure(run, code, said)
        return ended

    def _log(self, run: PlannedRun) -> pathlib.Path:
        return self._directory / "logs" / f"{run.directory}.txt"

    def _record_failure(self, run: PlannedRun, code: int, last: str) -> None:
        log = self._log(run)
        said = log.read_bytes()[self._log_begins[run] :].decode(errors="replace")
        lines = said.strip().splitlines()
        directory = self._directory / run.directory
        directory.mkdir(exist_ok=True)
        if code < 0:
            message = f"killed by {signal.Signals(-code).name}"
        else:
            message = lines[-1] if lines else last or f"ended with status {code}"
        Run(directory).write("failed.json", {"exit_code": code, "message": message})
        print(
            f"{run.case}, seed {run.seed}, failed ({log}): {message}", file=sys.stderr
        )

    def fractions(self) -> dict[PlannedRun, float]:
        """Returns the progress of each running run, from 0 to 1."""
        runs = [run for pack, _ in self._going.values() for run in pack]
        return {run: _fraction(self._directory, run) for run in runs}

    def stop(self) -> None:
        """Asks every run to save and stop, and waits for it."""
        for _, worker in self._going.values():
            worker.stop()
        while self._going:
            self.reap()
            self.wait(1.0)


def _fraction(directory: pathlib.Path, run: PlannedRun) -> float:
    try:
        with open(directory / run.directory / "metrics.jsonl", "rb") as file:
            # Only the last lines: the cores belong to the runs.
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            steps = re.findall(rb'^{"step": (\d+)', file.read(), re.MULTILINE)
    except OSError:
        return 0.0
    return int(steps[-1]) / run.config.train.steps if steps else 0.0
