"""Batches put on the devices ahead of time, by a background thread."""

import collections
import concurrent.futures
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

from reslab.core.errors import ReslabError

Host = TypeVar("Host")
Placed = TypeVar("Placed")


def prefetch(
    iterator: Iterable[Host], place: Callable[[Host], Placed], depth: int = 2
) -> Generator[Placed, None, None]:
    """Maps `place` over an iterator, up to `depth` items ahead of the consumer.

    A thread makes and places the batches while the device computes. It starts
    with the first `next` and ends with the iterator, at `close()`, or when the
    generator is dropped. An exception in the thread is raised in the consumer,
    after the items made before it.

    Args:
      iterator: Gives the host batches; only the thread advances it.
      place: Puts one host batch on the devices.
      depth: How many placed batches may wait.

    Yields:
      The placed batches, in order.

    Raises:
      ReslabError: If the depth is below one.

    >>> list(prefetch(range(3), lambda x: x * 10))
    [0, 10, 20]
    """
    if depth < 1:
        raise ReslabError("prefetch depth", expected="at least 1", got=str(depth))
    batches = iter(iterator)

    def make() -> tuple[Placed, ...]:
        """One placed batch, or nothing at the end."""
        for batch in batches:
            return (place(batch),)
        return ()

    # A single thread runs submitted calls in order, one batch at a time.
    thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    try:
        waiting = collections.deque(thread.submit(make) for _ in range(depth))
        while made := waiting.popleft().result():
            waiting.append(thread.submit(make))
            yield made[0]
    finally:
        thread.shutdown(cancel_futures=True)
