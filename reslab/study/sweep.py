"""Runs a study: several runs at once, each of them resumable."""

import contextlib
import dataclasses
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence

from reslab.core.errors import ReslabError
from reslab.core.platform import available_cores
from reslab.core.records import read_record, sealed
from reslab.observe.progress import progress
from reslab.runtime.exits import DIVERGED
from reslab.runtime.files import make_directory, scratch_directory, write_whole
from reslab.runtime.inside import check_links
from reslab.runtime.stopping import StopRequest, asked_to_stop
from reslab.runtime.storage import storage_error
from reslab.study.plan import Plan, PlannedRun, read_study
from reslab.study.pool import Pool
from reslab.study.slots import Pack, Slots, SweepStopped
from reslab.train.run import Run


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
        slots = Slots(directory, jobs, cores, pool, stop)
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
    cases: dict[tuple[str, float | None], list[PlannedRun]] = {}
    for run in runs:
        cases.setdefault((run.case, run.factor), []).append(run)
    return [tuple(pack) for pack in cases.values()]


def _check(packs: Sequence[Pack], slots: Slots) -> dict[str, float]:
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
        cost[run.case] = answer["flops_per_step"] * run.config.train.steps
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


def _run_all(
    packs: Sequence[Pack],
    slots: Slots,
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
