"""Small runs in processes of their own, with faults in them."""

import collections
import contextlib
import dataclasses
import gc
import itertools
import multiprocessing
import os
import pathlib
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

from reslab.core import config as configs
from reslab.drill.commands import Program
from reslab.drill.disk import Disk

STEPS = 40
SAVED_EVERY = 8
# Trains in about a second once compiled, and has every part of a real run.
SMALL = {
    "model.features": 16,
    "model.depth": 1,
    "model.mixer": "attention(heads=2)",
    "precision.compute": "float32",
    "data.source": "synthetic(documents=60)",
    "data.length": 16,
    "data.batch": 8,
    "optim.name": "sgd(momentum=0.9)",
    "optim.learning_rate": 0.1,
    "optim.schedule": "constant",
    "train.steps": STEPS,
    "train.log_every": 1,
    "train.checkpoint_every": SAVED_EVERY,
    "train.eval_every": 100,
    "eval.batch": 8,
    "probes.every": 0,
}
# Modules that every small run imports, once for all forked processes.
PRELOADED = (
    "reslab.train.ending",
    "reslab.train.tasks.language",
    "reslab.nn.stacks.uniform",
    "reslab.nn.blocks.standard",
    "reslab.nn.mixers.attention",
    "reslab.nn.ffns.swiglu",
    "reslab.nn.linears.dense",
    "reslab.nn.residuals.plain",
    "reslab.ops.attention.api",
    "reslab.data.sources.synthetic",
    "grain",
)
# Maximum file size on the simulated full disk: above the metrics, below the parameters.
FULL = 12_000
# Seconds after which a process counts as hung.
HUNG = 240.0
# Seconds after which the other processes here detect a dead one.
HEARTBEAT = 8


def small(**changes: Any) -> str:
    """The small config with some fields changed (`a__b` for `a.b`), as JSON."""
    fields = {key.replace("__", "."): value for key, value in changes.items()}
    config = configs.update(configs.load("base"), (SMALL | fields).items())
    return configs.canonical_json(config)


@dataclasses.dataclass(frozen=True)
class Fault:
    """A fault that happens to a process.

    Attributes:
      kind: `kill`, `term`, `pause` (SIGSTOP), `raise`, `stall`, `exit`, `full` (no
        file may grow any more), `vanish` (the checkpoints are deleted), `unnamed` (its
        record is moved away), or what becomes of the run directory: `delete`, `rename`,
        and replaced by `empty` (a directory), `file`, `other` (another run's) or
        `shell` (one that has the checkpoints alone).
      step: The step after which it happens.
      delay: Seconds after the step, during which the run continues and saves.
      paths: Where the run directory is moved to, and the other run.
    """

    kind: str
    step: int
    delay: float = 0.0
    paths: tuple[pathlib.Path, ...] = ()


class Workshop:
    """Starts processes, quickly: they are forked from one that has imported all.

    Args:
      directory: For runs and the compile cache.
      program: Runs a command line and returns its exit code.
    """

    def __init__(self, directory: pathlib.Path, program: Program):
        self.directory = directory
        self.program = program
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__, *PRELOADED])
        self._kept: dict[str, pathlib.Path] = {}
        self._locks = collections.defaultdict(threading.Lock)
        self._count = itertools.count(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for path in self.directory.iterdir():
            if path.is_dir() and path.name != "cache":
                shutil.rmtree(path, ignore_errors=True)

    def new(self) -> pathlib.Path:
        """A directory that is not there yet."""
        return self.directory / f"run-{next(self._count)}"

    def call(
        self, work: Callable[..., Any], *arguments: Any, devices: int = 1
    ) -> Iterator[Any]:
        """Yields what a generator yields in a process of its own.

        Raises:
          RuntimeError: If it fails.
        """
        reader, writer = self._context.Pipe(duplex=False)
        log = self.directory / f"{work.__name__}.txt"
        process = self._context.Process(
            target=_call,
            args=(writer, work, arguments, devices, self.directory / "cache", log),
        )
        process.start()
        writer.close()
        is_whole = False
        with contextlib.suppress(EOFError):
            while not is_whole:
                kind, item = reader.recv()
                is_whole = kind == "end"
                if not is_whole:
                    yield item
        process.join()
        if not is_whole:
            raise RuntimeError(f"{work.__name__} failed: {_last_line(log)}")

    def train(
        self,
        run: pathlib.Path,
        *,
        config: str | None = None,
        faults: Mapping[int, Fault] | None = None,
        processes: int = 1,
        devices: int = 1,
        watchdog: float = 0.0,
        pace: float = 0.0,
        disk: tuple[pathlib.Path, pathlib.Path, int | None] | None = None,
    ) -> "Ended":
        """Trains a run in one or more processes, until all have ended.

        Args:
          run: Its directory.
          config: As JSON; the small one if None.
          faults: By process.
          processes: How many.
          devices: CPU devices of each.
          watchdog: As `loop.train` takes it; the patience for a first step is 10.
          pace: Seconds that every step takes longer.
          disk: Arguments of a `Disk` that notes what is synced.

        Returns:
          How each ended.
        """
        address = f"127.0.0.1:{_free_port()}"
        logs = [run.with_name(f"{run.name}-{i}.txt") for i in range(processes)]
        started = []
        for index, log in enumerate(logs):
            log.unlink(missing_ok=True)
            place = (address, processes, index) if processes > 1 else None
            process = self._context.Process(
                target=_train,
                args=(
                    *(config or small(), str(run), (faults or {}).get(index), place),
                    *(devices, watchdog, pace, self.directory / "cache", log, disk),
                ),
            )
            process.start()
            started.append(process)
        began, ends = time.monotonic(), [0.0] * processes
        codes: list[int | None] = [None] * processes
        paused = [i for i, fault in (faults or {}).items() if fault.kind == "pause"]
        while None in codes and time.monotonic() < began + HUNG:
            for index, process in enumerate(started):
                if codes[index] is None and process.exitcode is not None:
                    codes[index], ends[index] = process.exitcode, time.monotonic()
            time.sleep(0.02)
            # A paused process cannot end; wait for the others.
            for index in paused if len(paused) == codes.count(None) else ():
                started[index].kill()
        for process in started:
            process.kill()  # No-op if it has ended.
            process.join()
        return Ended(
            tuple(codes), _after_fault(logs, ends), tuple(map(_last_line, logs))
        )

    def clean(self, name: str, **options: Any) -> pathlib.Path:
        """A run without faults, trained once for all rows.

        Raises:
          RuntimeError: If it does not end well.
        """
        with self._locks[name]:
            if name not in self._kept:
                run = self.directory / f"clean-{name}"
                ended = self.train(run, **options)
                if {*ended.codes} != {0}:  # None is hung.
                    raise RuntimeError(f"a run without faults fails: {ended}")
                self._kept[name] = run
        return self._kept[name]


@dataclasses.dataclass(frozen=True)
class Ended:
    """Exit codes and output of the processes of a run.

    Attributes:
      codes: Their exit codes, negative for a signal; None hung.
      seconds: From the fault to the end of the last.
      said: The last line of each.
    """

    codes: tuple[int | None, ...]
    seconds: float
    said: tuple[str, ...]


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _last_line(log: pathlib.Path) -> str:
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    return next((line for line in reversed(lines) if line.strip()), "")[:200]


def _after_fault(logs: Sequence[pathlib.Path], ends: Sequence[float]) -> float:
    """Seconds from the fault, which a process notes beside its log, to the end."""
    times = [log.with_suffix(".fault") for log in logs]
    at = [float(path.read_text()) for path in times if path.exists()]
    for path in times:
        path.unlink(missing_ok=True)
    return max(ends) - min(at) if at else 0.0


def _enter(devices: int, cache: pathlib.Path, log: pathlib.Path) -> Any:
    """Makes a forked process as good as a new one; before JAX is woken up."""
    gc.freeze()  # Imported modules live as long as the process.
    gc.set_threshold(100_000, 20, 100)
    file = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.environ["XLA_FLAGS"] = ""
    os.environ["NPROC"] = str(max(8, 4 * devices))
    import jax

    jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return jax


def _call(
    writer: Any,
    work: Callable[..., Any],
    arguments: Sequence[Any],
    devices: int,
    cache: pathlib.Path,
    log: pathlib.Path,
) -> None:
    _enter(devices, cache, log)
    for item in work(*arguments):
        writer.send(("item", item))
    writer.send(("end", None))


def _train(
    config: str,
    run: str,
    fault: Fault | None,
    place: tuple[str, int, int] | None,
    devices: int,
    watchdog: float,
    pace: float,
    cache: pathlib.Path,
    log: pathlib.Path,
    disk: tuple[pathlib.Path, pathlib.Path, int | None] | None,
) -> None:
    jax = _enter(devices, cache, log)
    if disk is not None:
        Disk(*disk)
    from reslab.parallel import hosts
    from reslab.runtime import watchdog as dogs
    from reslab.train import loop
    from reslab.train.ending import end

    dogs.PATIENCE = 10.0
    code = 0
    try:
        if place is not None:
            hosts.join(*place, heartbeat=HEARTBEAT)
        loop.train(
            configs.from_json(config, "config"),
            run,
            watchdog=watchdog,
            after_step=_planted(fault, pace, pathlib.Path(run), log),
        )
    except BaseException as error:
        code = end(error)
    if place is not None:
        jax.distributed.shutdown()
    sys.exit(code)


def _planted(
    fault: Fault | None, pace: float, run: pathlib.Path, log: pathlib.Path
) -> Callable[[int], None]:
    """A function of the step, in which the fault happens."""

    def happen(fault: Fault) -> None:
        log.with_suffix(".fault").write_text(str(time.monotonic()))
        if fault.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault.kind == "term":
            os.kill(os.getpid(), signal.SIGTERM)
        elif fault.kind == "pause":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif fault.kind == "exit":
            os._exit(3)
        elif fault.kind == "stall":
            time.sleep(HUNG)
        elif fault.kind == "raise":
            raise RuntimeError("planted")
        elif fault.kind == "full":
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (FULL, FULL))
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        elif fault.kind == "vanish":
            (run / "checkpoints").rename(run / "gone")
        elif fault.kind == "unnamed":
            fault.paths[0].mkdir()
            for name in ("config.json", "run.json"):
                (run / name).rename(fault.paths[0] / name)
        elif fault.kind == "delete":
            while run.exists():
                shutil.rmtree(run, ignore_errors=True)
        elif fault.kind in ("rename", "empty", "shell", "file", "other"):
            gone, other = fault.paths
            run.rename(gone)
            if fault.kind in ("empty", "shell"):
                run.mkdir()
            if fault.kind == "shell":
                (gone / "checkpoints").rename(run / "checkpoints")
            if fault.kind == "file":
                run.write_text("a file")
            elif fault.kind == "other":
                shutil.copytree(other, run)

    def after_step(step: int) -> None:
        time.sleep(pace)
        if fault is None or step != fault.step:
            return
        if fault.delay:
            threading.Timer(fault.delay, happen, (fault,)).start()
        else:
            happen(fault)

    return after_step
