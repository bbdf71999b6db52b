"""Batches: shuffled without end for training, once in order for validation."""

import contextlib
import operator
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, Self

import grain
import numpy as np
from absl import flags

from reslab.core.errors import ReslabError
from reslab.data.workers import (
    Handed,
    apart_from_working_directory,
    check_may_start,
    workers_answer,
)

Example = dict[str, np.ndarray]


class Examples(Protocol):
    """Random access to examples, each arrays of the same shapes by name.

    Among them is `loss_mask`, with one entry for every unit of an example.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


class TrainBatches(Iterator[Example]):
    """Shuffled examples without end, in batches.

    The order is a pure function of (seed, index): a new permutation of all
    examples each epoch, batches running across the seam. It does not depend on
    the number of processes or workers. Process p of n gets rows p, p + n, ...
    of each global batch.

    Args:
      examples: The examples; every process must hold the same.
      global_batch: Examples per batch, over all processes.
      seed: Chooses the order.
      process_index: This process.
      process_count: How many processes share the batches.
      worker_count: Processes that make examples in the background. 0 is the
        fastest for what is in memory.
      others: Other examples, each with the share of the batches that they are, evenly
        spread; the shares add up to less than 1.

    Raises:
      ReslabError: If the batch does not divide by the processes, an argument is out
        of range, or workers are asked for while a worker itself starts.
    """

    def __init__(
        self,
        examples: Examples,
        global_batch: int,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
        worker_count: int = 0,
        others: Sequence[tuple[Examples, float]] = (),
    ):
        _check_batch("batch", global_batch, process_index, process_count)
        if not 0 <= seed < 2**32:
            raise ReslabError("data seed", expected="0 to 2**32 - 1", got=str(seed))
        if worker_count < 0:
            raise ReslabError(
                "data workers", expected="at least 0", got=str(worker_count)
            )
        if worker_count:
            _allow_unparsed_flags()
            check_may_start()
            examples = Handed(examples)
            others = [(Handed(more), share) for more, share in others]
        self._has_workers, self._has_begun = worker_count > 0, False
        dataset = grain.MapDataset.source(examples).seed(seed).shuffle().repeat()
        if others:
            parts, shares = [dataset], [share for _, share in others]
            for number, (more, _) in enumerate(others, start=1):
                # One seed for all would permute them alike.
                one = grain.MapDataset.source(more).seed(seed ^ number)
                parts.append(one.shuffle().repeat())
            dataset = grain.MapDataset.mix(parts, [1 - sum(shares), *shares])
        self._global_batch = global_batch
        self._batches = grain.experimental.ElasticIterator(
            dataset,
            global_batch,
            grain.sharding.ShardOptions(process_index, process_count),
            # A window takes about 20 us, less than the overhead of threads.
            read_options=grain.ReadOptions(num_threads=0, prefetch_buffer_size=0),
            multiprocessing_options=(
                grain.MultiprocessingOptions(num_workers=worker_count)
                if worker_count
                else None
            ),
        )

    def __next__(self) -> Example:
        """Gives arrays of shape (global_batch / process_count, ...).

        Raises:
          WorkersFailed: If a worker process has died.
        """
        if not self._has_workers:
            return next(self._batches)
        with contextlib.ExitStack() as stack:
            stack.enter_context(workers_answer())
            if not self._has_begun:
                self._has_begun = True
                stack.enter_context(apart_from_working_directory())
            return next(self._batches)

    @property
    def state(self) -> int:
        """Examples given out so far, over all processes: the next global index.

        Setting it continues from there, with any number of processes. It counts
        what left this iterator, which a prefetcher keeps ahead of the training:
        after s steps the state to save is `s * global_batch`.
        """
        return self._batches.get_state()["global_next_index"]

    @state.setter
    def state(self, index: int) -> None:
        is_integer = isinstance(index, int | np.integer) and not isinstance(index, bool)
        if not is_integer or index < 0 or index % self._global_batch:
            raise ReslabError(
                "data state",
                expected=f"a multiple of the batch {self._global_batch}, at least 0",
                got=repr(index),
            )
        self._set_state({"global_next_index": operator.index(index)})

    def close(self) -> None:
        """Ends the worker processes; the state stays."""
        # Setting the state also drops the closed workers, which would otherwise
        # be closed again, with a traceback, when the interpreter shuts down.
        self._set_state(self._batches.get_state())

    def _set_state(self, state: dict[str, Any]) -> None:
        self._batches.set_state(state)
        self._has_begun = False  # New workers start.

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def validation_batches(
    examples: Examples,
    batch: int,
    process_index: int = 0,
    process_count: int = 1,
    *,
    most: int | None = None,
) -> Iterator[Example]:
    """Gives every example once, in order, or a sample spread evenly over all.

    Every batch has the same shape. The last is filled up with copies of its
    first example whose `loss_mask` is False throughout, so they count nothing
    and yet are ordinary input.

    Args:
      examples: The examples.
      batch: Examples per batch, over all processes.
      process_index: This process, which gets rows p, p + n, ... of each batch.
      process_count: How many processes share the batches.
      most: Number of batches, filled with evenly spaced examples; None takes all.

    Returns:
      An iterator of arrays of shape (batch / process_count, ...).

    Raises:
      ReslabError: If the batch does not divide by the processes.
    """
    _check_batch("validation batch", batch, process_index, process_count)
    rows = range(process_index, batch, process_count)
    count = len(examples) if most is None else min(most * batch, len(examples))
    return _in_order(_Spaced(examples, count), batch, rows)


class _Spaced:
    """Examples from the middles of equal parts of others."""

    def __init__(self, examples: Examples, count: int):
        self._examples, self._count = examples, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Example:
        whole = len(self._examples)
        return self._examples[(2 * index + 1) * whole // (2 * self._count)]


def _in_order(examples: Examples, batch: int, rows: range) -> Iterator[Example]:
    for begin in range(0, len(examples), batch):
        filler = examples[begin]
        filler["loss_mask"] = np.zeros_like(filler["loss_mask"])
        chosen = [
            examples[begin + row] if begin + row < len(examples) else filler
            for row in rows
        ]
        yield {key: np.stack([example[key] for example in chosen]) for key in filler}


def _check_batch(what: str, batch: int, index: int, count: int) -> None:
    if batch < 1 or batch % count:
        raise ReslabError(
            what,
            expected=f"a positive multiple of the {count} processes",
            got=str(batch),
        )
    if not 0 <= index < count:
        raise ReslabError("process index", expected=f"0 to {count - 1}", got=str(index))


def _allow_unparsed_flags() -> None:
    """Lets Grain's workers start in a program that does not use absl's `app.run`.

    Grain reads absl flags when it starts workers, and absl refuses to give even
    the defaults before a command line was parsed.
    """
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
