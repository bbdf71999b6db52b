"""The processes of a run: what is set before JAX wakes up, and how they agree."""

import contextlib
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from reslab.core.errors import ReslabError
from reslab.runtime.exits import BAD_INPUT
from reslab.runtime.platforms import has_tpu_chips
from reslab.runtime.stopping import asked_to_stop
from reslab.runtime.storage import StorageFailed

Answer = TypeVar("Answer")


def join(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    seconds: float = 300.0,
    heartbeat: int = 30,
) -> None:
    """Makes this process one of a run on many hosts; call before the first array.

    On Cloud TPU the hosts find each other, without arguments: JAX asks the environment
    (GKE) or the metadata server (TPU VMs). Elsewhere they are told. Where there are
    neither arguments nor TPU chips, or nothing is known of other hosts, this process
    is alone.

    Args:
      coordinator: `HOST:PORT` of process 0.
      processes: How many there are.
      process: Which this is, from 0.
      seconds: How long to wait for the others.
      heartbeat: Seconds after which a process that has died is noticed.

    Raises:
      ReslabError: If the arguments make no sense. If the others do not come the
        process ends, with one line and exit code 2: JAX would abort it.
    """
    told = (coordinator, processes, process)
    is_told = told != (None, None, None)
    if not is_told:
        if not has_tpu_chips():
            return
    elif None in told:
        raise ReslabError("--coordinator, --processes and --process belong together")
    else:
        host, colon, port = str(coordinator).rpartition(":")
        if not (host and colon and port.isdigit() and 0 < int(port) < 2**16):
            raise ReslabError("--coordinator", expected="HOST:PORT", got=str(told[0]))
        if processes is not None and processes < 1:
            raise ReslabError("--processes", expected="at least 1", got=str(processes))
        if process is not None and not 0 <= process < (processes or 0):
            raise ReslabError(
                "--process", expected=f"0 to {(processes or 0) - 1}", got=str(process)
            )
    with _leaving_after(seconds):
        try:
            jax.distributed.initialize(
                coordinator,
                processes,
                process,
                # Longer than the limit here: at its own limit the runtime aborts the
                # process.
                initialization_timeout=int(seconds) + 60,
                heartbeat_timeout_seconds=heartbeat,
            )
        except (RuntimeError, ValueError, OSError) as error:
            # Neither host names in the environment nor a metadata server.
            is_unknown = isinstance(error, ValueError | OSError)
            if is_unknown and not is_told:
                return
            raise ReslabError(
                "the processes of this run cannot find each other",
                got=(str(error).splitlines() or [type(error).__name__])[0],
                hint="JAX_PLATFORMS=cpu to leave the TPU alone",
            ) from error


def check_joined() -> None:
    """Checks that a host of several has joined them; makes JAX look for its devices.

    Raises:
      ReslabError: If it has not.
    """
    if jax.process_count() > 1 and not jax.distributed.is_initialized():
        raise ReslabError(
            f"this host is one of {jax.process_count()} of its TPU slice",
            expected="a command that all hosts run together: `reslab train` alone",
            hint="the same command on every host (tpu_setup/launch.sh does that)",
        )


@contextlib.contextmanager
def _leaving_after(seconds: float) -> Iterator[None]:
    def say() -> None:
        print(
            f"reslab: waiting for the other hosts, at most {seconds:.0f} s",
            file=sys.stderr,
            flush=True,
        )

    def leave() -> None:
        print(
            f"reslab: the other hosts of this run have not come in {seconds:.0f} s; "
            "try: the same command on every host (tpu_setup/launch.sh does that)",
            file=sys.stderr,
            flush=True,
        )
        os._exit(BAD_INPUT)

    timers = threading.Timer(10.0, say), threading.Timer(seconds, leave)
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()


def configure_cpu(devices: int, cores: int | None = None) -> None:
    """Makes JAX see a CPU as that many devices; call before the first array.

    XLA's in-process collectives block a thread of its pool for each device. With
    no more threads than cores they wait for each other for ever (observed with
    two devices on two cores), so the pool is made larger than both.

    Args:
      devices: Number of CPU devices. Nothing changes where XLA_FLAGS already
        sets their number.
      cores: Cores to divide work by, whichever the process may use: sums are rounded
        by their number. Those that it may use if None.

    Raises:
      ReslabError: If they are far more than this machine has cores.
    """
    most = max(64, 4 * (os.cpu_count() or 1))
    if devices > most:
        raise ReslabError(
            "mesh.cpu_devices",
            expected=f"at most {most} on this machine",
            got=f"{devices:,}",
        )
    # XLA reads the size of its pool from NPROC.
    if cores is not None:
        os.environ["NPROC"] = str(max(8, 4 * devices, cores) if devices > 1 else cores)
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    if devices > 1:
        os.environ.setdefault("NPROC", str(max(8, 4 * devices, os.cpu_count() or 1)))
        jax.config.update("jax_num_cpu_devices", devices)


def is_writer() -> bool:
    """Returns whether this process writes the files that all processes share."""
    return jax.process_index() == 0


def agree(is_well: bool) -> bool:
    """Returns whether all processes pass True; each must call it."""
    if jax.process_count() == 1:
        return is_well
    everyone = multihost_utils.process_allgather(np.asarray(is_well))
    return bool(np.all(everyone))


def wait_for_all(what: str) -> None:
    """Waits until every process has come to the same place."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def on_writer(work: Callable[[], Answer]) -> Answer:
    """Does something in one process, and tells the others what came of it.

    Args:
      work: Gives what JSON can hold, or raises `ReslabError`.

    Raises:
      ReslabError: In every process, if it was raised in the one.
      StorageFailed: Likewise.
    """
    if jax.process_count() == 1:
        return work()
    answer: Any = {}
    error: ReslabError | StorageFailed | None = None
    if is_writer():
        try:
            answer = {"answer": work()}
        except ReslabError as caught:
            error, answer = caught, {"error": str(caught)}
        except StorageFailed as caught:
            error, answer = caught, {"failed": str(caught)}
    text = np.frombuffer(json.dumps(answer).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.asarray(text.size)))
    text = np.resize(text, size)
    text = np.asarray(multihost_utils.broadcast_one_to_all(text))
    if error is not None:
        raise error
    answer = json.loads(text.tobytes())
    if "error" in answer:
        raise ReslabError(answer["error"])
    if "failed" in answer:
        raise StorageFailed(answer["failed"])
    return answer["answer"]


def in_all(work: Callable[[], None]) -> None:
    """Does something in every process; what one raises is raised in all.

    Args:
      work: Raises `ReslabError` or `StorageFailed` where a process cannot go on.

    Raises:
      ReslabError: If that was raised in one.
      StorageFailed: Likewise.
    """
    kinds = (ReslabError, StorageFailed)
    error: ReslabError | StorageFailed | None = None
    try:
        work()
    except kinds as caught:
        error = caught
    if jax.process_count() > 1:
        here = 0 if error is None else 1 + isinstance(error, StorageFailed)
        worst = int(np.max(multihost_utils.process_allgather(np.asarray(here))))
        if worst and error is None:
            error = kinds[worst - 1]("another host of this run cannot go on")
    if error is not None:
        raise error


def check_same(what: str, digest: str) -> None:
    """Checks that every process has the same of something.

    Raises:
      ReslabError: In every process, if one differs.
    """
    if not agree(on_writer(lambda: digest) == digest):
        raise ReslabError(
            f"{what} is not the same on every host",
            got=f"sha256 {digest[:12]} on host {jax.process_index()}",
            hint="the same files and versions everywhere",
        )


@contextlib.contextmanager
def asked_to_stop_together() -> Iterator[Callable[[], bool]]:
    """Yields a test whether to stop, with the same answer in all processes.

    Yields:
      A function that all processes call equally often, from the first step on.
    """
    if jax.process_count() == 1:
        # Before the first step is compiled there is nothing to save.
        with asked_to_stop(is_listening=False) as request:

            def is_asked() -> bool:
                request.listen()
                return request.is_set

            yield is_asked
        return
    calls, is_reached = itertools.count(), False

    def is_asked_together() -> bool:
        nonlocal is_reached
        # JAX handles SIGTERM: a notice to one process reaches all, at the same call,
        # later than the calls that any process has made.
        number = next(calls)
        is_reached |= multihost_utils.reached_preemption_sync_point(number)
        return is_reached

    yield is_asked_together


def leave_alone(code: int) -> None:
    """Ends this process of several without waiting for the others.

    They wait for it in a collective, and it for them at the end of the interpreter:
    both for ever. When it is gone, they are ended by their heartbeat.
    """
    if jax.process_count() > 1:
        if jax.process_index() == 0:
            # The others may end for the same reason; without the coordinator the
            # runtime aborts them before they can report it.
            time.sleep(2.0)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
