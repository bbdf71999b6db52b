"""Processes of a sweep, each with a share of the machine, that do run after run."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
from collections.abc import Mapping, Sequence
from multiprocessing.connection import wait
from typing import Any

from reslab.core.platform import available_cores
from reslab.runtime.python import command
from reslab.study.worker import CORES


class Ended(Exception):
    """A process ended before it had answered.

    Attributes:
      code: Its exit code; negative is the signal that killed it.
      said: The last line that it wrote outside of a run's log.
    """

    def __init__(self, code: int, said: str):
        super().__init__(said)
        self.code = code
        self.said = said


class Worker:
    """A process that does what it is told, one thing after the other.

    Args:
      log: File for what it says outside of a run.
      share: Environment variables that give it its part of the machine.
      devices: CPU devices of its runs: JAX counts them once per process.
    """

    def __init__(self, log: pathlib.Path, share: Mapping[str, str], devices: int):
        self._log = log
        self._devices = devices
        # Digests of parts outside reslab, which Python imports once per process.
        self._imported: dict[str, str] = {}
        with open(log, "w") as stream:
            self._process = subprocess.Popen(
                command("reslab.study.worker"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                env={**os.environ, **share},
                # The sweep receives keyboard interrupts and passes them on.
                start_new_session=True,
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._asks, self._answers = self._process.stdin, self._process.stdout
        os.set_blocking(self._answers.fileno(), False)
        self._read = b""

    def takes(self, devices: int, parts: Mapping[str, str]) -> bool:
        """Returns whether it can do a run, whose parts it then has imported.

        Args:
          devices: CPU devices of the run.
          parts: Digests of the parts outside reslab that it imports.
        """
        known = self._imported
        is_edited = any(known.get(name, one) != one for name, one in parts.items())
        if is_edited or devices != self._devices:
            return False
        known.update(parts)
        return True

    def ask(self, what: Mapping[str, Any]) -> None:
        """Gives it something to do; it must have answered what it was asked before."""
        with contextlib.suppress(BrokenPipeError):  # `answer` reports how it ended.
            self._asks.write(json.dumps(what).encode() + b"\n")
            self._asks.flush()

    def answer(self) -> dict[str, Any] | None:
        """Returns its answer, or None before it has come.

        Raises:
          Ended: If it ended instead.
        """
        code = self._process.poll()
        self._read += self._answers.read() or b""
        if b"\n" in self._read:
            line, self._read = self._read.split(b"\n", 1)
            return json.loads(line)
        if code is None:
            return None
        lines = self._log.read_text(errors="replace").strip().splitlines()
        raise Ended(code, lines[-1] if lines else f"ended with status {code}")

    def fileno(self) -> int:
        """Returns where its answers, and its end, are noticed."""
        return self._answers.fileno()

    def stop(self) -> None:
        """Asks it to save what it does, and to end."""
        self._process.send_signal(signal.SIGTERM)

    def close(self) -> None:
        """Lets it end, and waits for that."""
        with contextlib.suppress(BrokenPipeError):
            self._asks.close()
        self._process.wait()
        self._answers.close()


class Pool:
    """Places for workers, each with its share of the machine.

    A worker is kept for the next run that can be done in the same process.

    Args:
      folder: A folder for what workers say.
      jobs: Number of places.
      cache: Folder for compiled programs, where the environment names none.
    """

    def __init__(self, folder: pathlib.Path, jobs: int, cache: pathlib.Path):
        self._folder = folder
        # Seeds of a case compile the same programs.
        kept = {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
        }
        absent = {name: text for name, text in kept.items() if name not in os.environ}
        self._shares = [{**absent, **share(place, jobs)} for place in range(jobs)]
        self._workers: dict[int, Worker] = {}

    def worker(self, place: int, devices: int, parts: Mapping[str, str]) -> Worker:
        """Returns the worker of a place, a new one where the last cannot do a run.

        Args:
          place: Number of the place.
          devices: As `Worker.takes` takes them.
          parts: As `Worker.takes` takes them.
        """
        worker = self._workers.get(place)
        if worker and not worker.takes(devices, parts):
            self.dismiss(place)
            worker = None
        if worker is None:
            log = self._folder / f"worker-{place}.txt"
            worker = self._workers[place] = Worker(log, self._shares[place], devices)
            worker.takes(devices, parts)
        return worker

    def dismiss(self, place: int) -> None:
        """Lets the worker of a place end."""
        self._workers.pop(place).close()

    def close(self) -> None:
        """Lets all workers end."""
        for place in list(self._workers):
            self.dismiss(place)


def wait_for(workers: Sequence[Worker], seconds: float) -> None:
    """Waits until one of these has something to say, or has ended."""
    wait([worker.fileno() for worker in workers], seconds)


def share(slot: int, jobs: int) -> dict[str, str]:
    """The environment that gives one of several processes its part of the machine.

    Devices that a scheduler has chosen are shared out; others are not touched.
    """
    if jobs == 1:
        return {}
    here = available_cores()
    found = {CORES: ",".join(map(str, here[slot % len(here) :: jobs]))}
    for name in ("CUDA_VISIBLE_DEVICES", "TPU_VISIBLE_DEVICES"):
        chosen = os.environ.get(name, "")
        # An empty list is no device, and never another's.
        visible = chosen.split(",") if chosen else [str(i) for i in range(jobs)]
        found[name] = visible[slot] if slot < len(visible) else ""
    return found | {
        "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1",
        "TPU_PROCESS_BOUNDS": "1,1,1",
    }
