"""Tokens on disk are the corpus that they came from."""

import gzip
import json
import pickle
import random
import sys

import numpy as np
import pytest

from reslab.cli import main
from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.data.batches import TrainBatches
from reslab.data.corpus import load_corpus
from reslab.data.tokenized import open_corpus, tokenize
from reslab.data.windows import WindowSource

SOURCE = "synthetic(documents=60, words=20)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokens") / "made"
    tokenize(SOURCE, "bytes", path)
    return path


def test_it_is_the_same_corpus(folder):
    kept, loaded = open_corpus(folder, "bytes"), load_corpus(SOURCE, "bytes")
    assert (kept.sha256, kept.bytes, kept.documents) == (
        *(loaded.sha256, loaded.bytes, loaded.documents),
    )
    for one, other in (
        (kept.train, loaded.train),
        (kept.validation, loaded.validation),
    ):
        np.testing.assert_array_equal(np.asarray(one.tokens), other.tokens)
        np.testing.assert_array_equal(one.starts, other.starts)
    made = load_corpus(f"tokens(path={str(folder)!r})", "bytes")
    windows = WindowSource(made.train, 16), WindowSource(loaded.train, 16)
    assert len(windows[0]) == len(windows[1])
    for index in (0, 7, len(windows[0]) - 1):
        for key, value in windows[0][index].items():
            np.testing.assert_array_equal(value, windows[1][index][key])


def test_a_pickled_file_is_its_path(folder):
    tokens = open_corpus(folder, "bytes").train.tokens
    packed = pickle.dumps(tokens)
    assert len(packed) < 500
    np.testing.assert_array_equal(pickle.loads(packed)[5:9], tokens[5:9])


def test_refusals(folder, tmp_path, monkeypatch):
    # Installed, it would look for the bucket for most of a minute.
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ReslabError, match="expected a new directory"):
        tokenize(SOURCE, "bytes", folder)
    with pytest.raises(ReslabError, match="made by `reslab data tokenize`"):
        open_corpus(tmp_path, "bytes")
    with pytest.raises(ReslabError, match="tokens of another tokenizer"):
        open_corpus(folder, "huggingface(path='x')")
    empty = folder.parent / "empty.jsonl"
    empty.write_text('{"text": ""}')
    with pytest.raises(ReslabError, match="train split: expected text"):
        tokenize(f"jsonl(path={str(empty)!r})", "bytes", tmp_path / "a")
    with pytest.raises(ReslabError, match="documents to tokenize"):
        tokenize(f"tokens(path={str(folder)!r})", "bytes", tmp_path / "b")
    with pytest.raises(ReslabError, match="mount the bucket"):
        load_corpus("text(path='gs://bucket/x')", "bytes")
    assert not list(tmp_path.iterdir())  # Nothing half made is left.


def test_a_short_file_is_noticed(tmp_path):
    tokenize(SOURCE, "bytes", tmp_path / "made")
    path = tmp_path / "made" / "train.tokens"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ReslabError, match=r"train.tokens: expected \d+ tokens"):
        open_corpus(tmp_path / "made", "bytes")


def test_shares_of_a_mixture():
    specs = [f"synthetic(documents=40, words={n}, seed={n})" for n in (30, 60, 90)]
    source = f"mixture(sources={tuple(specs)}, weights=(5, 3, 2))"
    corpus = load_corpus(source, "bytes")
    parts = [load_corpus(spec, "bytes") for spec in specs]
    assert [share for _, share in corpus.others] == [0.3, 0.2]
    assert corpus.bytes == sum(part.bytes for part in parts)
    assert len(corpus.validation.starts) == sum(len(p.validation.starts) for p in parts)
    begins = corpus.validation.tokens[corpus.validation.starts]
    assert not begins.any()  # Every start is a BOS.
    streams = [corpus.train, *(stream for stream, _ in corpus.others)]
    kinds = []
    for kind, stream in enumerate(streams):
        windows = WindowSource(stream, 16)
        kinds += [(windows[i]["tokens"].tobytes(), kind) for i in range(len(windows))]
    kind_of = dict(kinds)
    others = [(WindowSource(stream, 16), share) for stream, share in corpus.others]
    batches = TrainBatches(WindowSource(corpus.train, 16), 10, 0, others=others)
    for _ in range(12):
        seen = [kind_of[row.tobytes()] for row in next(batches)["tokens"]]
        assert np.bincount(seen, minlength=3).tolist() == [5, 3, 2]


@pytest.mark.parametrize(
    "spec",
    [
        "mixture()",
        "mixture(sources=('web',))",
        "mixture(sources=('stdlib', 'stdlib'), weights=(1,))",
        "mixture(sources=('stdlib',), weights=(0,))",
        "mixture(sources=('stdlib',), weights=('x',))",
    ],
)
def test_mixtures_that_make_no_sense(spec):
    with pytest.raises(ReslabError):
        load_corpus(spec, "bytes")


def test_json_lines(tmp_path):
    rows = [json.dumps({"text": f"Zeile {n} ü"}) for n in range(30)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows[:20]))
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write("\n".join(rows[20:]))
    corpus = load_corpus(f"jsonl(path={str(tmp_path)!r})", "bytes")
    assert corpus.documents == 30
    assert corpus.tokenizer.decode(corpus.validation.tokens[:11]) == "Zeile 0 ü"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"secret"', "not JSON: got Expecting ':' delimiter"),
        (b"secret: 1", "not JSON: got Expecting value"),
        (b'{"text": "secret\xff"}', "not JSON: expected UTF-8; got byte 16"),
        (b"[" * 100_000, "not JSON: got nested too deeply"),
        (b"9" * 5000, "not JSON: got Exceeds the limit"),
        (b'["secret"]', "expected an object; got list"),
        (b'{"body": "secret"}', "expected text in 'text'; got no such field"),
        (b'{"text": ["secret"]}', "expected text in 'text'; got list"),
        (b'{"text": "secret \\ud800"}', "got half of a surrogate pair"),
    ],
)
def test_a_wrong_line_is_named_and_not_shown(line, reason, tmp_path, refused):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n' + line)
    with refused(f"{path}, line 2: ", reason) as caught:
        load_corpus(f"jsonl(path={str(path)!r})", "bytes")
    assert "secret" not in str(caught.value)


def test_the_command(tmp_path, capsys):
    out = str(tmp_path / "made")
    assert main(["data", "tokenize", SOURCE, "--out", out]) == 0
    said = capsys.readouterr().out
    assert "train " in said and f"tokens(path={out!r})" in said
    assert main(["data", "tokenize", SOURCE, "--out", out]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("seed", range(8))
def test_white_space_between_lines_is_passed_over(seed, tmp_path):
    draw = random.Random(seed)
    rows = [json.dumps({"text": f"line {n} ü"}, ensure_ascii=False) for n in range(30)]
    blanks = ["\n", "\r\n", " \n", "\t \r\n", "\n\n\n"]
    text = draw.choice(["", "\ufeff"]) + draw.choice(["", *blanks])
    for row in rows:
        text += draw.choice(["", " "]) + row + draw.choice(["\n", "\r\n", *blanks])
        text += draw.choice(["", "", *blanks]) if text[-1] == "\n" else "\n"
    raw = (text + draw.choice(["", *blanks])).encode()
    path = tmp_path / draw.choice(["a.jsonl", "a.jsonl.gz"])
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    source = registry.make("sources", f"jsonl(path={str(path)!r})")
    assert [d.decode() for d in source.documents()] == [
        f"line {n} ü" for n in range(30)
    ]


def test_other_files_beside_the_shards_are_passed_over(tmp_path, capsys, refused):
    row = json.dumps({"text": "a b"}) + "\n"
    for name in ("a.jsonl", "b.ndjson", "part-00000", "c.json"):
        (tmp_path / name).write_text("\n" + row * 2)
    (tmp_path / "README.md").write_text("# Shards\n" + row)
    (tmp_path / "info.json").write_text('{"rows": 8}')
    (tmp_path / "_SUCCESS").write_text("")
    source = registry.make("sources", f"jsonl(path={str(tmp_path)!r})")
    assert len(list(source.documents())) == 8
    (line,) = capsys.readouterr().err.splitlines()
    assert "passed over" in line and "README.md" in line and "info.json" in line
    assert "_SUCCESS" not in line
    # By their names these are JSON lines.
    (tmp_path / "d.jsonl").write_text("# Shards\n")
    with refused("d.jsonl, line 1: not JSON"):
        list(source.documents())
    named = registry.make("sources", f"jsonl(path={str(tmp_path / 'README.md')!r})")
    with refused("README.md, line 1: not JSON"):
        list(named.documents())
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "README.md").write_text("# Nothing\n")
    with refused("source jsonl: expected lines"):
        list(
            registry.make(
                "sources", f"jsonl(path={str(tmp_path / 'none')!r})"
            ).documents()
        )
    # A later line that is wrong is no other file.
    (tmp_path / "d.jsonl").write_text(row)
    (tmp_path / "c.json").write_text(row + "half")
    with refused("c.json, line 2: not JSON"):
        list(source.documents())
