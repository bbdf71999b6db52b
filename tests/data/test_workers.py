"""Worker processes: one that dies is told, and none outlives its run."""

import gc
import multiprocessing
import os
import pathlib
import pickle
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

from reslab.data.batches import TrainBatches
from reslab.data.workers import Handed, WorkersFailed


class Rows:
    """More than a pipe holds."""

    def __init__(self):
        self.values = np.arange(2**18, dtype=np.int32).reshape(-1, 4)

    def __len__(self):
        return len(self.values)

    def __getitem__(self, index):
        return {"tokens": self.values[index], "loss_mask": np.ones(4, bool)}


def test_examples_are_handed_over_in_a_file_that_goes_with_them():
    handed = Handed(Rows())
    pickled = pickle.dumps(handed)
    assert len(pickled) < 4096
    folder = handed._path.parent
    assert pickle.loads(pickled)[7]["tokens"].tolist() == handed[7]["tokens"].tolist()
    assert len(handed) == 2**16 and pickle.dumps(handed) == pickled
    del handed
    gc.collect()
    assert not folder.exists()


def test_a_worker_does_not_start_workers(monkeypatch, refused):
    process = multiprocessing.current_process()
    monkeypatch.setattr(process, "_inheriting", True, raising=False)
    with refused("data.workers", "__main__"):
        TrainBatches(Rows(), 8, 0, worker_count=1)
    TrainBatches(Rows(), 8, 0)


@pytest.mark.conformance
def test_workers_import_nothing_from_the_working_directory(tmp_path, monkeypatch):
    for name in sys.stdlib_module_names:
        (tmp_path / f"{name}.py").write_text("raise ImportError('mine')")
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    with TrainBatches(Rows(), 8, 0, worker_count=1) as batches:
        assert next(batches)["tokens"].shape == (8, 4)
        batches.state = 16
        assert next(batches)["tokens"].shape == (8, 4)
    assert dict(os.environ) == before


def kill_a_child(delay):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for child in multiprocessing.active_children():
            time.sleep(delay)
            os.kill(child.pid, signal.SIGKILL)
            return
        time.sleep(0.001)


DELAYS = [random.Random(seed).expovariate(3.0) for seed in range(6)]


@pytest.mark.parametrize(
    "delay", [0.0, *(pytest.param(d, marks=pytest.mark.conformance) for d in DELAYS)]
)
def test_a_worker_killed_at_its_start_or_soon_is_one_line(delay):
    killer = threading.Thread(target=kill_a_child, args=(delay,))
    began = time.monotonic()
    with TrainBatches(Rows(), 8, 0, worker_count=1) as batches:
        killer.start()
        with pytest.raises(WorkersFailed, match=r"^a data worker ended .*status -9"):
            while True:
                next(batches)
    killer.join()
    assert time.monotonic() < began + 30


@pytest.mark.conformance
@pytest.mark.slow
def test_workers_end_with_a_run_that_is_killed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import multiprocessing, sys, time
            sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})
            from test_workers import Rows
            from reslab.data.batches import TrainBatches

            if __name__ == "__main__":
                batches = TrainBatches(Rows(), 8, 0, worker_count=2)
                for _ in range(4):
                    next(batches)
                print(*[p.pid for p in multiprocessing.active_children()], flush=True)
                time.sleep(100)
            """
        )
    )
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True
    ) as process:
        workers = [int(pid) for pid in process.stdout.readline().split()]
        assert len(workers) == 2
        process.kill()
    deadline = time.monotonic() + 10
    while any(pathlib.Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
