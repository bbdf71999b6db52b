import numpy as np
import pytest

from reslab.data.corpus import TokenStream
from reslab.data.windows import WindowSource


def make_stream(lengths, seed=0):
    """Documents of the given numbers of tokens, BOS included."""
    random = np.random.default_rng(seed)
    pieces = [
        np.concatenate([[0], random.integers(1, 257, n - 1)]).astype(np.uint16)
        for n in lengths
    ]
    starts = np.cumsum([0, *lengths[:-1]])
    return TokenStream(np.concatenate(pieces), starts)


def oracle(stream, length, index):
    """One token at a time, from the list of documents."""
    owner, begins = [], []
    ends = [*stream.starts[1:], len(stream.tokens)]
    for document, (start, end) in enumerate(zip(stream.starts, ends, strict=True)):
        owner += [document] * (end - start)
        begins += [start] * (end - start)
    begin = index * length
    here = range(begin, begin + length)
    return {
        "tokens": [stream.tokens[i] for i in here],
        "targets": [stream.tokens[i + 1] for i in here],
        "segment_ids": [owner[i] - owner[begin] + 1 for i in here],
        "positions": [i - max(begins[i], begin) for i in here],
        "loss_mask": [owner[i] == owner[i + 1] for i in here],
    }


@pytest.mark.parametrize("length", [1, 2, 5, 8, 60])
@pytest.mark.parametrize(
    "lengths",
    [
        [61],
        [5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5],
        [1, 1, 1, 3, 1, 20, 2, 1, 9, 16, 4, 1, 7],
        [8, 16, 1, 7, 24, 9],
    ],
)
def test_windows_match_the_oracle(lengths, length):
    stream = make_stream(lengths)
    windows = WindowSource(stream, length)
    assert len(windows) == (sum(lengths) - 1) // length
    for index in range(len(windows)):
        window = windows[index]
        for key, expected in oracle(stream, length, index).items():
            np.testing.assert_array_equal(window[key], expected, err_msg=key)
            assert window[key].dtype == (bool if key == "loss_mask" else np.int32)
            assert window[key].shape == (length,)


def test_windows_of_many_documents_match_the_oracle():
    lengths = np.random.default_rng(1).integers(1, 40, 300).tolist()
    stream = make_stream(lengths)
    windows = WindowSource(stream, 64)
    for index in range(len(windows)):
        for key, expected in oracle(stream, 64, index).items():
            np.testing.assert_array_equal(windows[index][key], expected, err_msg=key)


def test_the_end_of_a_document_is_a_target_where_asked_for():
    stream = make_stream([3, 1, 5, 8])
    hidden, predicted = (
        WindowSource(stream, 4, predicts_end=predicts) for predicts in (False, True)
    )
    for index in range(len(hidden)):
        before, after = hidden[index], predicted[index]
        assert after.pop("loss_mask").all()
        is_end = ~before.pop("loss_mask")
        at = index * 4 + 1 + np.flatnonzero(is_end)
        assert set(at) == set(stream.starts) & set(range(index * 4 + 1, index * 4 + 5))
        for key, value in before.items():
            np.testing.assert_array_equal(after[key], value)


def test_no_target_is_lost_or_repeated():
    stream = make_stream([7, 30, 3, 25])
    windows = WindowSource(stream, 8)
    targets = np.concatenate([windows[i]["targets"] for i in range(len(windows))])
    np.testing.assert_array_equal(targets, stream.tokens[1 : len(targets) + 1])


def test_changing_a_window_leaves_the_stream_alone():
    windows = WindowSource(make_stream([9, 8]), 4)
    before = {key: value.copy() for key, value in windows[1].items()}
    for value in windows[1].values():
        value[:] = 0
    for key, value in windows[1].items():
        np.testing.assert_array_equal(value, before[key])


def test_windows_read_a_memory_map(tmp_path):
    stream = make_stream([9, 30, 8])
    np.save(tmp_path / "tokens.npy", stream.tokens)
    mapped = np.load(tmp_path / "tokens.npy", mmap_mode="r")
    windows = WindowSource(TokenStream(mapped, stream.starts), 10)
    for key, expected in WindowSource(stream, 10)[2].items():
        np.testing.assert_array_equal(windows[2][key], expected)


def test_an_index_beyond_the_end_is_an_index_error():
    windows = WindowSource(make_stream([17]), 4)
    assert len(list(windows)) == 4
    for index in (-1, 4):
        with pytest.raises(IndexError):
            windows[index]


def test_wrong_lengths_are_refused(refused):
    stream = make_stream([4, 4])
    assert len(WindowSource(stream, 7)) == 1
    with refused("sequence length", "at most 7", "got 8"):
        WindowSource(stream, 8)
    with refused("sequence length", "at least 1"):
        WindowSource(stream, 0)
