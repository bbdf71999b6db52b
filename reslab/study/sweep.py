"""Runs a study: several runs at once, each of them resumable."""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from reslab.core import config as configs
from reslab.core import imports, own
from reslab.core.errors import ReslabError
from reslab.core.platform import available_cores
from reslab.core.records import read_record, sealed
from reslab.observe.metrics import senders
from reslab.observe.progress import progress
from reslab.runtime.exits import DIVERGED, INTERNAL, STOPPED
from reslab.runtime.files import make_directory, scratch_directory, write_whole
from reslab.runtime.inside import check_links, open_inside
from reslab.runtime.stopping import StopRequest, asked_to_stop
from reslab.runtime.storage import storage_error
from reslab.study.plan import Plan, PlannedRun, read_study
from reslab.study.pool import Ended, Pool, Worker, wait_for
from reslab.train.run import Run

# Runs that are trained together: one, or the seeds of a case.
Pack = tuple[PlannedRun, ...]


class SweepStopped(Exception):
    """The sweep was asked to stop; every active run has been saved."""


@dataclasses.dataclass(frozen=True)
class Tally:
    """Outcome of a study's runs.

    Attributes:
      done: Runs that are finished, now or before.
      failed: Runs that failed, with what they said last.
    """

    done: tuple[PlannedRun, ...]
    failed: tuple[tuple[PlannedRun, str], ...]


def sweep(
    plan: Plan,
    *,
    runs: Sequence[PlannedRun] | None = None,
    jobs: int = 1,
    is_retrying: bool = False,
    is_packing: bool = False,
) -> Tally:
    """Does the runs of a study that are not done yet.

    A run that is finished is skipped, one that was interrupted resumes, and one
    that fails is reported and does not stop the others. A run that diverged stays
    so: it would diverge again.

    Args:
      plan: The study.
      runs: Those to do; all if None.
      jobs: How many at once. They share the machine: its cores on a CPU, its
        chips one by one on a GPU or TPU.
      is_retrying: Whether to repeat runs that diverged.
      is_packing: Whether the seeds of a case train together, as one program.

    Returns:
      What became of the runs asked for.

    Raises:
      ReslabError: If a config cannot be built; nothing was written then.
      SweepStopped: After SIGTERM or an interrupt.
    """
    directory = plan.directory
    runs = plan.runs if runs is None else runs
    if jobs < 1:
        raise ReslabError("--jobs", expected="at least 1", got=str(jobs))
    pending = [
        run for run in runs if not _is_settled(directory / run.directory, is_retrying)
    ]
    check_links(directory)
    cores = cores_of(plan)
    with asked_to_stop() as stop, scratch_directory("reslab.sweep-") as scratch:
        pool = Pool(scratch, jobs, scratch / "programs")
        slots = _Slots(directory, jobs, cores, pool, stop)
        with contextlib.closing(pool):
            packs = _packs(pending, is_packing)
            cost = _check(packs, slots)
            write_record(plan, cores)
            try:
                _run_all(packs, slots, cost, stop)
            finally:
                slots.stop()
    if stop.is_set:
        raise SweepStopped
    failures = {run: _failure(directory / run.directory) for run in runs}
    return Tally(
        done=tuple(run for run in runs if failures[run] is None),
        failed=tuple((run, why) for run, why in failures.items() if why is not None),
    )


def cores_of(plan: Plan) -> int:
    """The cores that every run of a study computes with on a CPU.

    XLA divides work by their number, and with it sums are rounded otherwise. So it is
    the study's: what it asks for, what it began with, or what this machine has; and
    not what `jobs` leave for each.

    Raises:
      ReslabError: If the record of the study is damaged.
    """
    record = plan.directory / "study.json"
    began = read_study(record).get("cores") if record.exists() else None
    cores = plan.study.cores or began or len(available_cores())
    if began not in (None, cores):
        print(
            f"{plan.directory}: {cores} cores a run, the study began with {began}; "
            "runs may not end bit for bit as they would have",
            file=sys.stderr,
        )
    return cores


def write_record(plan: Plan, cores: int) -> None:
    """Writes `study.json` and `manifest.jsonl` into the study's directory."""
    directory = plan.directory
    try:
        make_directory(directory)
        study = json.dumps(sealed({**plan.record(), "cores": cores}), indent=1)
        write_whole(directory / "study.json", study + "\n")
        write_whole(directory / "manifest.jsonl", "\n".join(plan.manifest()) + "\n")
    except OSError as error:
        raise storage_error(
            f"study directory {directory}",
            error,
            expected="a directory that can be written",
            hint="--out DIR",
        ) from None


def _is_settled(directory: pathlib.Path, is_retrying: bool) -> bool:
    if Run(directory).result() is not None:
        return True
    failed = directory / "failed.json"
    if not failed.is_file() or is_retrying:
        return False
    return read_record(failed).get("exit_code") == DIVERGED


def _failure(directory: pathlib.Path) -> str | None:
    """Returns the message of a failed run; None if it is finished."""
    if (directory / "result.json").is_file():
        return None
    failed = directory / "failed.json"
    if failed.is_file():
        return str(read_record(failed).get("message", ""))
    return "not finished"


def _packs(runs: Sequence[PlannedRun], is_packing: bool) -> list[Pack]:
    """Divides runs into those that are trained together."""
    if not is_packing:
        return [(run,) for run in runs]
    cases: dict[str, list[PlannedRun]] = {}
    for run in runs:
        cases.setdefault(run.case, []).append(run)
    return [tuple(pack) for pack in cases.values()]


def _check(packs: Sequence[Pack], slots: "_Slots") -> dict[str, float]:
    """The FLOPs of a run of every case, after checking that each can be built.

    In processes of their own, with a run's share of the machine: on a TPU, a process
    that lists the chips holds them, and JAX can count its CPU devices only once.
    """
    cases: dict[str, Pack] = {}
    for pack in packs:
        cases.setdefault(pack[0].case, pack)
    cost, platforms = {}, set()
    # Runs of one process together.
    ordered = sorted(cases.values(), key=lambda pack: pack[0].config.mesh.cpu_devices)
    for pack in ordered:
        run = pack[0]
        answer = slots.check(0, pack)
        data, steps = run.config.data, run.config.train.steps
        cost[run.case] = answer["flops_per_token"] * steps * data.batch * data.length
        platforms.add(answer["platform"])
    jobs = len(slots)
    if jobs == 1 or not ordered or platforms == {"cpu"}:
        return cost
    if slots.check(jobs - 1, ordered[-1])["platform"] not in platforms:
        raise ReslabError(
            "--jobs",
            expected="at most one run for each device",
            got=f"{jobs}, and no device is left for the last of them",
        )
    return cost


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


class _Slots:
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


def _run_all(
    packs: Sequence[Pack],
    slots: _Slots,
    cost: Mapping[str, float],
    stop: StopRequest,
) -> None:
    waiting = list(packs)
    total = sum(cost[run.case] for pack in packs for run in pack) or 1.0
    finished, ended = 0.0, 0
    with progress(100, 0, "sweep") as bar:
        going = True
        while going and not stop.is_set:
            for run in slots.reap():
                finished, ended = finished + cost[run.case], ended + 1
            for slot in slots.free():
                if waiting:
                    slots.start(slot, waiting.pop(0))
            parts = slots.fractions()
            partial = sum(part * cost[run.case] for run, part in parts.items())
            bar.update(
                round(100 * (finished + partial) / total),
                {"runs_ended": ended},
            )
            going = bool(waiting or parts)
            if going:
                slots.wait(0.2)
