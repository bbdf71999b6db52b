"""Runs a study: every run in a process of its own, several at once, resumable."""

import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from reslab.core import config as configs
from reslab.core import imports
from reslab.core.errors import ReslabError
from reslab.core.platform import available_cores
from reslab.core.records import read_record, sealed
from reslab.observe.metrics import senders
from reslab.observe.progress import progress
from reslab.runtime.exits import DIVERGED, STOPPED
from reslab.runtime.files import make_directory, scratch_directory, write_whole
from reslab.runtime.inside import check_links, open_inside
from reslab.runtime.python import command
from reslab.runtime.stopping import StopRequest, asked_to_stop
from reslab.runtime.storage import storage_error
from reslab.study.plan import Plan, PlannedRun, read_study
from reslab.study.worker import CORES
from reslab.train.run import Run

_WORKER = "reslab.study.worker"


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
    cost = _check(pending, jobs, cores) if pending else {}
    write_record(plan, cores)
    with (
        asked_to_stop() as stop,
        scratch_directory("reslab.sweep-") as cache,
    ):
        slots = _Slots(directory, jobs, cores, str(cache))
        try:
            _run_all(pending, slots, cost, stop)
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


def _check(runs: Sequence[PlannedRun], jobs: int, cores: int) -> dict[str, float]:
    """The FLOPs of a run of every case, after checking that each can be built.

    In processes of their own, with a run's share of the machine: on a TPU, a process
    that lists the chips holds them, and JAX can count its CPU devices only once.
    """
    cases: dict[str, PlannedRun] = {}
    for run in runs:
        cases.setdefault(run.case, run)
    cost, platforms = {}, set()
    for devices in sorted({run.config.mesh.cpu_devices for run in cases.values()}):
        alike = {
            case: run
            for case, run in cases.items()
            if run.config.mesh.cpu_devices == devices
        }
        for (case, run), answer in zip(
            alike.items(), _ask(alike, _share(0, jobs), cores), strict=True
        ):
            if "error" in answer:
                raise ReslabError(f"case {case!r}: {answer['error']}")
            data, steps = run.config.data, run.config.train.steps
            cost[case] = answer["flops_per_token"] * steps * data.batch * data.length
            platforms.add(answer["platform"])
    if jobs > 1 and platforms != {"cpu"}:
        case, run = next(iter(cases.items()))
        (last,) = _ask({case: run}, _share(jobs - 1, jobs), cores)
        if last.get("platform") not in platforms:
            raise ReslabError(
                "--jobs",
                expected="at most one run for each device",
                got=f"{jobs}, and no device is left for the last of them",
            )
    return cost


def _ask(
    cases: Mapping[str, PlannedRun], share: Mapping[str, str], cores: int
) -> list[dict[str, Any]]:
    """Returns the answers of a checking process about one run of each case."""
    lines = [_line(run, cores) for run in cases.values()]
    done = subprocess.run(
        command(_WORKER, "check"),
        input="".join(lines),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **share},
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    if done.returncode or len(answers) != len(lines):
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        case = list(cases)[min(len(answers), len(lines) - 1)]
        raise ReslabError(f"case {case!r} cannot be built", got=last)
    return answers


def _line(run: PlannedRun, cores: int) -> str:
    """Builds a worker's input: the config, and what a person's study allows."""
    named = {module for _, module in configs.outside(dict(configs.flatten(run.config)))}
    named |= {*senders(run.config.train.writers)}
    told = {
        "config": configs.canonical_json(run.config),
        "allowed": sorted(named | set(imports.allowed())),
        "cores": cores,
    }
    return json.dumps(told) + "\n"


class _Slots:
    """The slots in which runs execute, each with its share of the machine."""

    def __init__(self, directory: pathlib.Path, jobs: int, cores: int, cache: str):
        self._directory = directory
        self._environments = [_share(i, jobs) for i in range(jobs)]
        self._cores = cores
        # Seeds of a case compile the same programs. Not kept: another machine that
        # shares the directory may lack this one's instructions.
        self._cache = cache
        self._log_begins: dict[PlannedRun, int] = {}
        self._going: dict[int, tuple[PlannedRun, subprocess.Popen[str]]] = {}

    def free(self) -> list[int]:
        """Returns the idle slots."""
        return [i for i in range(len(self._environments)) if i not in self._going]

    def start(self, slot: int, run: PlannedRun) -> None:
        """Starts a run in a slot; what it says goes to `logs/`."""
        directory = self._directory / run.directory
        (directory / "failed.json").unlink(missing_ok=True)
        logs = self._directory / "logs"
        logs.mkdir(exist_ok=True)
        environment = {
            "JAX_COMPILATION_CACHE_DIR": self._cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
            **os.environ,
            **self._environments[slot],
        }
        with open_inside(logs / f"{run.directory}.txt", "a") as log:
            self._log_begins[run] = log.tell()
            process = subprocess.Popen(
                command(_WORKER, "train", str(directory)),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                env=environment,
                # An interrupt from the keyboard is for the sweep, which passes it on.
                start_new_session=True,
            )
        assert process.stdin is not None
        process.stdin.write(_line(run, self._cores))
        process.stdin.flush()
        self._going[slot] = run, process

    def reap(self) -> list[PlannedRun]:
        """Takes out the runs that have ended, and records those that failed."""
        ended = []
        for slot, (run, process) in list(self._going.items()):
            if (code := process.poll()) is None:
                continue
            assert process.stdin is not None
            process.stdin.close()
            del self._going[slot]
            ended.append(run)
            # Asked to stop before it could save: nothing has failed.
            if code not in (0, STOPPED, -signal.SIGTERM):
                self._record_failure(run, code)
        return ended

    def _record_failure(self, run: PlannedRun, code: int) -> None:
        log = self._directory / "logs" / f"{run.directory}.txt"
        said = log.read_bytes()[self._log_begins[run] :].decode(errors="replace")
        lines = said.strip().splitlines()
        directory = self._directory / run.directory
        directory.mkdir(exist_ok=True)
        if code < 0:
            message = f"killed by {signal.Signals(-code).name}"
        else:
            message = lines[-1] if lines else f"ended with status {code}"
        Run(directory).write("failed.json", {"exit_code": code, "message": message})
        print(
            f"{run.case}, seed {run.seed}, failed ({log}): {message}", file=sys.stderr
        )

    def fractions(self) -> dict[PlannedRun, float]:
        """Returns the progress of each running run, from 0 to 1."""
        return {run: _fraction(self._directory, run) for run, _ in self._going.values()}

    def stop(self) -> None:
        """Asks every run to save and stop, and waits for it."""
        for _, process in self._going.values():
            process.send_signal(signal.SIGTERM)
        for _, process in self._going.values():
            process.wait()
        self.reap()


def _fraction(directory: pathlib.Path, run: PlannedRun) -> float:
    try:
        with open(directory / run.directory / "metrics.jsonl", "rb") as file:
            # The last lines are enough; the cores belong to the runs.
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            steps = re.findall(rb'^{"step": (\d+)', file.read(), re.MULTILINE)
    except OSError:
        return 0.0
    return int(steps[-1]) / run.config.train.steps if steps else 0.0


def _share(slot: int, jobs: int) -> dict[str, str]:
    """The environment that gives one of several processes its part of the machine.

    Devices that a scheduler has chosen are shared out; others are not touched.
    """
    if jobs == 1:
        return {}
    here = available_cores()
    share = {CORES: ",".join(map(str, here[slot % len(here) :: jobs]))}
    for name in ("CUDA_VISIBLE_DEVICES", "TPU_VISIBLE_DEVICES"):
        chosen = os.environ.get(name, "")
        # An empty list is no device, and never another's.
        visible = chosen.split(",") if chosen else [str(i) for i in range(jobs)]
        share[name] = visible[slot] if slot < len(visible) else ""
    return share | {
        "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1",
        "TPU_PROCESS_BOUNDS": "1,1,1",
    }


def _run_all(
    pending: Sequence[PlannedRun],
    slots: _Slots,
    cost: Mapping[str, float],
    stop: StopRequest,
) -> None:
    waiting = list(pending)
    total = sum(cost[run.case] for run in pending) or 1.0
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
                _wait(stop, 2.0)


def _wait(stop: StopRequest, seconds: float) -> None:
    """Sleeps, or less if asked to stop."""
    end = time.monotonic() + seconds
    while not stop.is_set and time.monotonic() < end:
        time.sleep(0.05)
