"""A process of a sweep: checks configs and trains runs, one after the other.

Standard input has one line of JSON for each, standard output one for each answer:

    {"config": TEXT, "allowed": [...], "cores": N, "pack": M}   what a run costs
    {..., "runs": [{"config": TEXT, "directory": PATH, "log": FILE}, ...]}
                                                                trains them, together

A failure of a run is its own: what comes next is done as if by a new process. The end
of standard input is the end of the sweep, on which a run is saved and stops: a sweep
that is killed leaves no process behind.
"""

import contextlib
import gc
import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from reslab.core import config as configs
from reslab.core import imports
from reslab.core.errors import ReslabError
from reslab.runtime.exits import STOPPED
from reslab.runtime.inside import open_inside
from reslab.runtime.stopping import asked_to_stop
from reslab.runtime.text import warnings_in_one_line
from reslab.train.run import InUse

# Cores that this process may use, comma-separated; the sweep sets it.
CORES = "RESLAB_CORES"
# Seconds to wait for a run that another process holds: trainers of a killed sweep need
# some to notice and save.
PATIENCE = 60.0
# Minimum seconds without a step before a trainer ends itself.
WATCHDOG = 300.0


def check(config: ConfigDict, pack: int) -> dict[str, Any]:
    """Returns what a run of a config costs, or what is wrong with it.

    Args:
      config: The config.
      pack: Number of runs that are trained together.
    """
    from reslab.train.cost import training_flops_per_unit
    from reslab.train.loop import prepare
    from reslab.train.memory import check_memory
    from reslab.train.probe import Prober

    try:
        setup = prepare(config)
        check_memory(setup, runs=pack)
        if config.probes.every:
            Prober(setup, is_lenient=True)
        units = config.data.batch * setup.task.units_per_example
        flops = training_flops_per_unit(setup) * units
        platform = setup.mesh.devices.flat[0].platform
        return {"flops_per_step": flops, "platform": platform}
    except ReslabError as error:
        return {"error": str(error)}


def train(config: ConfigDict, directory: str, **options: Any) -> BaseException | None:
    """Trains a run; returns what ended it, if not its last step."""
    from reslab.train import loop

    options |= {"patience": PATIENCE, "watchdog": WATCHDOG}
    try:
        loop.train(config, directory, **options)
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        return error
    return None


def train_together(
    runs: Sequence[ConfigDict], directories: Sequence[str]
) -> list[BaseException | None]:
    """Trains runs that differ in their seed alone; returns what ended each."""
    from reslab.train.together import Pack

    pack = Pack([config.seed for config in runs])
    ends: list[BaseException | None] = [None] * len(runs)

    def train_one(number: int) -> None:
        programs = pack.member(number)
        try:
            config, directory = runs[number], directories[number]
            ends[number] = train(config, directory, programs=programs)
        finally:
            pack.leave(number)

    # Only the main thread receives signals; the others ask it.
    with asked_to_stop():
        threads = [
            threading.Thread(target=train_one, args=(number,), daemon=True)
            for number in range(len(runs))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return ends


def _code(error: BaseException | None) -> int:
    """Says what ended a run; returns the exit code that its own process would have."""
    from reslab.train.ending import end

    if isinstance(error, InUse):  # Another process is doing this run: not a failure.
        print(error, file=sys.stderr)
        return STOPPED
    return 0 if error is None else end(error)


def _answer(told: Mapping[str, Any]) -> dict[str, Any]:
    from reslab.parallel.hosts import configure_cpu

    with imports.guarded(told["allowed"]):
        asked = told.get("runs", [told])
        found = [configs.from_json(one["config"], "config") for one in asked]
        configure_cpu(found[0].mesh.cpu_devices, told["cores"])
        if "runs" not in told:
            return check(found[0], told["pack"])
        with _writing_to(asked[0]["log"]):
            if len(found) == 1:
                ends = [train(found[0], asked[0]["directory"])]
            else:
                ends = train_together(found, [one["directory"] for one in asked])
        codes = []
        for one, error in zip(asked, ends, strict=True):
            with _writing_to(one["log"]):
                codes.append(_code(error))
        return {"codes": codes}


@contextlib.contextmanager
def _writing_to(log: str) -> Iterator[None]:
    """Sends the output of this process, of C code too, to the end of a file."""
    kept = [os.dup(number) for number in (1, 2)]
    with open_inside(log, "a") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for number, before in zip((1, 2), kept, strict=True):
            os.dup2(before, number)
            os.close(before)


class _Asked:
    """Lines of standard input, read as they come so that its end is noticed."""

    def __init__(self) -> None:
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._is_busy = self._is_over = False
        # Parts that read standard input get none of the lines.
        self._source = os.dup(0)
        empty = os.open(os.devnull, os.O_RDONLY)
        os.dup2(empty, 0)
        os.close(empty)
        threading.Thread(target=self._listen, daemon=True).start()

    def __iter__(self) -> Iterator[bytes]:
        while (line := self._lines.get()) is not None:
            self._is_busy = True
            if self._is_over:  # The sweep was killed before this run began.
                return
            yield line
            self._is_busy = False

    def _listen(self) -> None:
        with open(self._source, "rb") as stream:
            for line in stream:
                self._lines.put(line)
        self._is_over = True
        self._lines.put(None)
        if self._is_busy:
            os.kill(os.getpid(), signal.SIGTERM)


def main() -> int:
    """Answers what it is asked until the end of standard input."""
    if CORES in os.environ and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, map(int, os.environ[CORES].split(",")))
    # Only answers go to standard output; prints of variants go elsewhere.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with warnings_in_one_line():
        for line in _Asked():
            print(json.dumps(_answer(json.loads(line))), file=answers, flush=True)
            gc.collect()  # Reference cycles would keep a run's arrays during the next.
    return 0
