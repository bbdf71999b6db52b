"""On many hosts a corpus is tokenized once, and all read the same tokens."""

import json
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.data.corpus import load_corpus
from reslab.data.tokenizers.bytes import BytesTokenizer
from reslab.train import corpora

SOURCE = "synthetic(documents=40)"
HOST = """
import json, pathlib, sys
from reslab.data.tokenizers import bytes as tokenizer
from reslab.data.corpus import load_corpus
from reslab.parallel.hosts import join
from reslab.train.corpora import tokenized_once

port, process, directory = sys.argv[1:]
kind, calls = tokenizer.BytesTokenizer, []
encode = kind.encode
kind.encode = lambda self, document: calls.append(0) or encode(self, document)
join("127.0.0.1:" + port, 2, int(process))
source = "mixture(sources=('synthetic(documents=40)', 'synthetic(documents=20)'))"
with tokenized_once(pathlib.Path(directory)):
    found = load_corpus(source, "bytes")
(other, _), = found.others
print(json.dumps([len(calls), found.sha256, found.tokens_sha256, len(other.tokens)]))
"""


@pytest.fixture
def calls(monkeypatch):
    """How often a document was encoded."""
    found, encode = [], BytesTokenizer.encode

    def counted(self, document):
        found.append(document)
        return encode(self, document)

    monkeypatch.setattr(BytesTokenizer, "encode", counted)
    return found


def test_a_corpus_is_tokenized_once_and_then_read(tmp_path, calls):
    found = corpora.shared(tmp_path, SOURCE, "bytes")
    assert len(calls) == 40
    again = corpora.shared(tmp_path, SOURCE, "bytes")
    assert len(calls) == 40
    wanted = load_corpus(SOURCE, "bytes")
    for one in (found, again):
        assert one.sha256 == wanted.sha256 and not one.stored
        for split in ("train", "validation"):
            stream, expected = getattr(one, split), getattr(wanted, split)
            assert isinstance(stream.tokens, np.ndarray)
            np.testing.assert_array_equal(stream.tokens, expected.tokens)
            np.testing.assert_array_equal(stream.starts, expected.starts)
            np.testing.assert_array_equal(
                np.asarray(stream.sizes), np.asarray(expected.sizes)
            )
    corpora.shared(tmp_path, "synthetic(documents=20)", "bytes")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", ["flip", "remove", "record", "link"])
def test_damaged_tokens_are_made_again(damage, tmp_path, calls):
    wanted = corpora.shared(tmp_path, SOURCE, "bytes")
    (path,) = tmp_path.glob("*/train.tokens")
    raw = bytearray(path.read_bytes())
    raw[100] ^= 1
    if damage == "flip":
        path.write_bytes(raw)
    elif damage == "remove":
        path.unlink()
    elif damage == "record":
        path.with_name("corpus.json").write_text("{}")
    else:
        path.unlink()
        path.symlink_to("nowhere")
    found = corpora.shared(tmp_path, SOURCE, "bytes")
    assert len(calls) == 80
    np.testing.assert_array_equal(found.train.tokens, wanted.train.tokens)


def test_a_source_that_fails_is_told(tmp_path):
    folder = tmp_path / "run" / "corpus"
    with pytest.raises(ReslabError, match="absent"):
        corpora.shared(folder, "text(path='absent.txt')", "bytes")
    assert not list(tmp_path.iterdir())


def test_waiting_is_bounded(tmp_path, monkeypatch, capsys):
    for name, seconds in (("PULSE", 0.01), ("PATIENCE", 0.3), ("VISIBLE", 0.1)):
        monkeypatch.setattr(corpora, name, seconds)
    stuck = threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr(corpora, "tokenize", lambda *_: stuck.wait())
        with pytest.raises(ReslabError, match="got none after 0"):
            corpora.shared(tmp_path, SOURCE, "bytes")
        stuck.set()
    assert f"tokenizing {SOURCE}: 0 documents" in capsys.readouterr().err
    monkeypatch.setattr(corpora, "tokenize", lambda *_: None)
    with pytest.raises(ReslabError, match="nothing on host 0"):
        corpora.shared(tmp_path, SOURCE, "bytes")


@pytest.mark.conformance
def test_two_hosts_encode_each_document_once(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    for count in (60, 0):
        hosts = [
            subprocess.Popen(
                [sys.executable, "-c", HOST, port, process, str(tmp_path / "run")],
                stdout=subprocess.PIPE,
                text=True,
            )
            for process in ("0", "1")
        ]
        said = [host.communicate(timeout=100)[0].splitlines()[-1] for host in hosts]
        one, two = map(json.loads, said)
        assert one[0] == count and two[0] == 0
        assert one[1:] == two[1:]
        # As a run that has begun: its corpus is kept.
        (tmp_path / "run" / "config.json").touch()
