import itertools

import numpy as np
import pytest

from reslab.data.batches import TrainBatches, validation_batches
from reslab.data.corpus import load_corpus
from reslab.data.windows import WindowSource

LENGTH, BATCH = 16, 8


@pytest.fixture(scope="module")
def corpus():
    return load_corpus("synthetic(documents=40, words=20)", "bytes")


def take(batches, count):
    return list(itertools.islice(batches, count))


def assert_same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_batches_are_rows_of_windows(corpus):
    batch = next(TrainBatches(WindowSource(corpus.train, LENGTH), BATCH, seed=0))
    windows = WindowSource(corpus.train, LENGTH)
    by_tokens = {window["tokens"].tobytes(): window for window in windows}
    for row in range(BATCH):
        window = by_tokens[batch["tokens"][row].tobytes()]
        assert window.keys() == batch.keys()
        for key, expected in window.items():
            np.testing.assert_array_equal(batch[key][row], expected, err_msg=key)
    assert batch["tokens"].shape == (BATCH, LENGTH)
    assert batch["tokens"].dtype == np.int32 and batch["loss_mask"].dtype == bool


def test_an_epoch_is_every_window_once_and_the_next_differs(corpus):
    windows = WindowSource(corpus.train, LENGTH)
    batches = TrainBatches(WindowSource(corpus.train, LENGTH), len(windows), seed=0)
    first, second = (next(batches)["tokens"].tolist() for _ in range(2))
    expected = sorted(window["tokens"].tolist() for window in windows)
    assert sorted(first) == sorted(second) == expected
    assert first != second


def test_order_depends_on_the_seed_alone(corpus):
    reference, again, other = (
        take(TrainBatches(WindowSource(corpus.train, LENGTH), BATCH, seed), 5)
        for seed in (1, 1, 2)
    )
    assert_same(reference, again)
    assert not np.array_equal(reference[0]["tokens"], other[0]["tokens"])


@pytest.mark.parametrize("count", [2, 4])
def test_processes_interleave_to_the_same_global_batches(corpus, count):
    # Long enough to cross from one epoch to the next.
    steps = len(WindowSource(corpus.train, LENGTH)) // BATCH + 3
    whole = take(TrainBatches(WindowSource(corpus.train, LENGTH), BATCH, 7), steps)
    shards = [
        take(
            TrainBatches(WindowSource(corpus.train, LENGTH), BATCH, 7, index, count),
            steps,
        )
        for index in range(count)
    ]
    for index, shard in enumerate(shards):
        rows = [{k: v[index::count] for k, v in batch.items()} for batch in whole]
        assert_same(shard, rows)


def test_resume_from_the_integer_is_exact(corpus):
    batches = TrainBatches(WindowSource(corpus.train, LENGTH), BATCH, 7)
    assert batches.state == 0
    take(batches, 5)
    state = batches.state
    assert type(state) is int and state == 5 * BATCH
    expected = take(batches, 60)
    resumed = TrainBatches(WindowSource(corpus.train, LENGTH), BATCH, 7)
    resumed.state = state
    assert_same(take(resumed, 60), expected)
    batches.state = state  # also back in the same iterator
    assert_same(take(batches, 60), expected)


def test_resume_with_other_processes_is_exact(corpus):
    pair = TrainBatches(WindowSource(corpus.train, LENGTH), BATCH, 7, 1, 2)
    take(pair, 3)
    whole = TrainBatches(WindowSource(corpus.train, LENGTH), BATCH, 7)
    whole.state = pair.state
    expected = take(TrainBatches(WindowSource(corpus.train, LENGTH), BATCH, 7), 6)[3:]
    assert_same(take(whole, 3), expected)


def test_resume_far_ahead(corpus):
    batches = TrainBatches(WindowSource(corpus.train, LENGTH), BATCH, 7)
    batches.state = np.int64(10**6 * BATCH)
    next(batches)
    assert batches.state == (10**6 + 1) * BATCH


def test_closing_keeps_the_state(corpus):
    with TrainBatches(WindowSource(corpus.train, LENGTH), BATCH, 7) as batches:
        take(batches, 2)
    batches.close()
    assert batches.state == 2 * BATCH
    assert_same(
        take(batches, 1),
        take(TrainBatches(WindowSource(corpus.train, LENGTH), BATCH, 7), 3)[2:],
    )


@pytest.mark.conformance
def test_a_worker_keeps_the_order(corpus):
    expected = take(TrainBatches(WindowSource(corpus.train, LENGTH), BATCH, 7), 6)
    with TrainBatches(
        WindowSource(corpus.train, LENGTH), BATCH, 7, worker_count=1
    ) as batches:
        assert_same(take(batches, 4), expected[:4])
        assert batches.state == 4 * BATCH
        batches.state = 2 * BATCH
        assert_same(take(batches, 4), expected[2:])


@pytest.mark.parametrize("state", [-8, 3, 12, 8.0, "8", None, True])
def test_wrong_states_are_refused(corpus, state, refused):
    batches = TrainBatches(WindowSource(corpus.train, LENGTH), BATCH, 7)
    take(batches, 1)
    with refused("data state", "multiple of the batch 8", repr(state)):
        batches.state = state
    assert batches.state == BATCH


def test_wrong_arguments_are_refused(corpus, refused):
    with refused("batch", "multiple of the 3 processes", "got 8"):
        TrainBatches(WindowSource(corpus.train, LENGTH), 8, 0, 0, 3)
    with refused("batch", "got 0"):
        TrainBatches(WindowSource(corpus.train, LENGTH), 0, 0)
    with refused("process index", "0 to 1"):
        TrainBatches(WindowSource(corpus.train, LENGTH), 8, 0, 2, 2)
    with refused("seed", "got -1"):
        TrainBatches(WindowSource(corpus.train, LENGTH), 8, -1)
    with refused("workers", "got -1"):
        TrainBatches(WindowSource(corpus.train, LENGTH), 8, 0, worker_count=-1)
    with refused("sequence length", "got 1000000"):
        TrainBatches(WindowSource(corpus.train, 10**6), 8, 0)
    with refused("validation batch", "got 5"):
        validation_batches(WindowSource(corpus.validation, LENGTH), 5, 0, 2)
    with refused("sequence length"):
        validation_batches(WindowSource(corpus.validation, 10**6), 8)


@pytest.mark.parametrize("batch", [1, 4, 7, 1000])
def test_validation_is_every_window_once_in_order(corpus, batch):
    windows = list(WindowSource(corpus.validation, LENGTH))
    batches = list(validation_batches(WindowSource(corpus.validation, LENGTH), batch))
    assert len(batches) == -(-len(windows) // batch)
    assert {b["tokens"].shape for b in batches} == {(batch, LENGTH)}
    for key in windows[0]:
        rows = np.concatenate([b[key] for b in batches])
        expected = np.stack([window[key] for window in windows])
        np.testing.assert_array_equal(rows[: len(windows)], expected)
        if key == "loss_mask":
            assert not rows[len(windows) :].any()
    assert batches[0]["loss_mask"].any()


def test_validation_rows_are_shared_between_processes(corpus):
    whole = list(validation_batches(WindowSource(corpus.validation, LENGTH), 8))
    for index in range(2):
        shard = list(
            validation_batches(WindowSource(corpus.validation, LENGTH), 8, index, 2)
        )
        rows = [{k: v[index::2] for k, v in batch.items()} for batch in whole]
        assert_same(shard, rows)


def test_a_sample_is_spread_over_all_examples(corpus):
    source = WindowSource(corpus.validation, LENGTH)
    whole = np.concatenate([b["tokens"] for b in validation_batches(source, 1)])
    batches = list(validation_batches(source, 2, most=3))
    found = np.concatenate([batch["tokens"] for batch in batches])
    middles = [(2 * i + 1) * len(whole) // 12 for i in range(6)]
    np.testing.assert_array_equal(found, whole[middles])
    # As many as there are, or more, are all of them, once.
    every = list(validation_batches(source, 8, most=10**9))
    assert sum(batch["loss_mask"].any(-1).sum() for batch in every) == len(whole)


def test_a_sample_is_the_same_on_any_number_of_processes(corpus):
    source = WindowSource(corpus.validation, LENGTH)
    whole = next(validation_batches(source, 4, most=1))["tokens"]
    parts = [
        next(validation_batches(source, 4, i, 2, most=1))["tokens"] for i in (0, 1)
    ]
    np.testing.assert_array_equal(np.stack(parts, 1).reshape(whole.shape), whole)
