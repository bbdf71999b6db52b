import collections
import math

import numpy as np
import pytest

from reslab.data.corpus import TokenStream, load_corpus
from reslab.data.ngrams import ngram_bits_per_byte


def make_stream(documents):
    pieces = [[0, *(byte + 1 for byte in document)] for document in documents]
    starts = np.cumsum([0, *map(len, pieces[:-1])])
    return TokenStream(np.concatenate(pieces).astype(np.uint16), starts)


def oracle(train, validation, order):
    """Counts in dictionaries, document by document."""

    def events(documents):
        for document in documents:
            padded = ["BOS"] * (order - 1) + list(document)
            for index, byte in enumerate(document):
                yield tuple(padded[index : index + order - 1]), byte

    joint = collections.Counter(events(train))
    totals = collections.Counter(context for context, _ in events(train))
    bits = [
        -math.log2((joint[context, byte] + 1) / (totals[context] + 256))
        for context, byte in events(validation)
    ]
    return sum(bits) / len(bits)


TRAIN = [b"abracadabra", b"", b"a", b"banana", bytes(range(256)), b"\xff\xff\0"]
VALIDATION = [b"cabana", b"", b"\xff", b"brabra z", b"\0\0\xff"]


@pytest.mark.parametrize("order", [1, 2, 3])
def test_counts_match_the_oracle(order):
    found = ngram_bits_per_byte(make_stream(TRAIN), make_stream(VALIDATION), order)
    assert found == pytest.approx(oracle(TRAIN, VALIDATION, order), rel=1e-12)


def test_no_counts_is_eight_bits():
    assert ngram_bits_per_byte(make_stream([b""]), make_stream([b"xyz"]), 2) == 8.0


def test_longer_contexts_help_on_text():
    corpus = load_corpus("synthetic", "bytes")
    bits = [ngram_bits_per_byte(corpus.train, corpus.validation, n) for n in (1, 2, 3)]
    assert 4.5 > bits[0] > bits[1] > bits[2] > 0.4


def test_other_orders_and_tokens_are_refused(refused):
    stream = make_stream(TRAIN)
    for order in (0, 4):
        with refused("n-gram order", f"got {order}"):
            ngram_bits_per_byte(stream, stream, order)
    wide = TokenStream(np.array([0, 300], np.uint16), np.array([0]))
    with refused("byte tokens", "300"):
        ngram_bits_per_byte(wide, stream, 1)
