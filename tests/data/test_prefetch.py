import gc
import itertools
import threading
import time

import pytest

from reslab.data.prefetch import prefetch


def running():
    return [t for t in threading.enumerate() if t.name.startswith("prefetch")]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert running() == []


def wait_until(condition):
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    return condition()


def test_order_is_kept_and_the_thread_ends():
    placed = prefetch(iter(range(100)), lambda x: x + 1, depth=3)
    assert list(placed) == list(range(1, 101))
    assert running() == []


def test_an_empty_iterator_gives_nothing():
    assert list(prefetch([], str)) == []


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_it_runs_ahead_by_the_depth_and_no_further(depth):
    seen = []
    placed = prefetch(itertools.count(), lambda x: seen.append(x) or x, depth)
    assert next(placed) == 0
    assert wait_until(lambda: len(seen) == depth + 1)
    time.sleep(0.02)
    assert len(seen) == depth + 1
    assert next(placed) == 1
    assert wait_until(lambda: len(seen) == depth + 2)
    placed.close()


def test_work_is_done_in_another_thread():
    names = list(prefetch(range(3), lambda _: threading.current_thread().name))
    assert all(name.startswith("prefetch") for name in names)


def fail_at(bad, error):
    for index in range(10):
        if index == bad:
            raise error
        yield index


def test_an_exception_of_the_iterator_comes_after_what_was_made():
    placed = prefetch(fail_at(3, OSError("disk gone")), str)
    assert [next(placed) for _ in range(3)] == ["0", "1", "2"]
    with pytest.raises(OSError, match="disk gone"):
        next(placed)
    assert running() == []
    with pytest.raises(StopIteration):
        next(placed)


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_an_exception_of_place_surfaces(kind):
    def place(x):
        if x == 1:
            raise kind("bad batch")
        return x

    placed = prefetch(range(5), place)
    assert next(placed) == 0
    with pytest.raises(kind, match="bad batch"):
        next(placed)
    assert running() == []


def test_stop_iteration_of_place_is_no_silent_end():
    def place(x):
        raise StopIteration

    with pytest.raises(RuntimeError):
        list(prefetch(range(5), place))


def test_close_ends_the_thread():
    placed = prefetch(itertools.count(), str)
    next(placed)
    assert len(running()) == 1
    placed.close()
    assert running() == []
    placed.close()
    with pytest.raises(StopIteration):
        next(placed)


def test_dropping_ends_the_thread():
    placed = prefetch(itertools.count(), str)
    next(placed)
    del placed
    gc.collect()
    assert running() == []


def test_nothing_starts_before_the_first_item():
    seen = []
    prefetch(range(3), seen.append).close()
    assert seen == [] and running() == []


def test_a_depth_below_one_is_refused(refused):
    with refused("prefetch depth", "got 0"):
        next(prefetch(range(3), str, depth=0))
