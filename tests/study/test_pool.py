"""Workers answer in turn; one that dies says how, and is replaced."""

import sys
import time

import pytest

from reslab.study import pool as pools
from reslab.study.pool import Ended, Pool, wait_for

# Answers with what it was asked and its number; dies where it is told to.
FAKE = """
import json, os, sys
print("not an answer", file=sys.stderr, flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if "die" in asked:
        print("that was it", file=sys.stderr, flush=True)
        os._exit(asked["die"])
    print(json.dumps({**asked, "process": os.getpid()}), flush=True)
"""


@pytest.fixture
def pool(tmp_path, monkeypatch):
    monkeypatch.setattr(pools, "command", lambda module: [sys.executable, "-c", FAKE])
    pool = Pool(tmp_path, 2, tmp_path / "programs")
    yield pool
    pool.close()


def answer(worker):
    end = time.monotonic() + 20
    while (found := worker.answer()) is None:
        assert time.monotonic() < end
        wait_for([worker], 1.0)
    return found


def test_a_place_keeps_its_worker_for_what_is_of_its_kind(pool):
    seen = []
    runs = [(1, {}), (1, {"lab": "a"}), (1, {}), (1, {"lab": "b"}), (8, {"lab": "b"})]
    for devices, parts in runs:
        worker = pool.worker(0, devices, parts)
        worker.ask({"devices": devices})
        seen.append(answer(worker)["process"])
    first, *others = seen
    # The part was edited after its import; JAX had counted its devices.
    assert others[:2] == [first, first] and len({first, *others[2:]}) == 3
    assert pool.worker(1, 8, {}) is not pool.worker(0, 8, {})


def test_one_that_dies_says_how_and_is_replaced(pool):
    worker = pool.worker(0, 1, {})
    worker.ask({"die": 3})
    with pytest.raises(Ended, match="that was it") as end:
        answer(worker)
    assert end.value.code == 3
    worker.ask({"kind": 1})  # As a sweep that has not noticed.
    pool.dismiss(0)
    pool.worker(0, 1, {}).ask({"kind": 1})
    assert answer(pool.worker(0, 1, {}))["kind"] == 1


def test_a_kill_is_its_signal(pool):
    worker = pool.worker(0, 1, {})
    worker.stop()
    with pytest.raises(Ended) as end:
        answer(worker)
    assert end.value.code == -15


def test_programs_are_shared_unless_the_environment_has_a_folder(tmp_path, monkeypatch):
    name = "JAX_COMPILATION_CACHE_DIR"
    monkeypatch.setenv(name, "")
    assert name not in Pool(tmp_path, 1, tmp_path)._shares[0]
    monkeypatch.delenv(name)
    assert Pool(tmp_path, 1, tmp_path)._shares[0][name] == str(tmp_path)
