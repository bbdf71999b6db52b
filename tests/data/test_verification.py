"""Stored tokens are those that were written, or they are refused in one line."""

import json
import os
import pickle
import shutil

import numpy as np
import pytest
import tokenizers

from reslab.core import registry
from reslab.core.errors import ReslabError
from reslab.data import verification
from reslab.data.corpus import load_corpus
from reslab.data.encoding import encode_document
from reslab.data.tokenized import open_corpus, tokenize

SOURCE = "synthetic(documents=60, words=20)"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokens") / "made"
    tokenize(SOURCE, "bytes", path)
    return path


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "made")


def record(folder, **fields):
    path = folder / "corpus.json"
    changed = json.loads(path.read_text()) | fields
    path.write_text(json.dumps(changed))


def as_before(folder):
    """The record of a version that knew no digests of files."""
    path = folder / "corpus.json"
    old = json.loads(path.read_text())
    del old["files"], old["tokenizer_sha256"]
    path.write_text(json.dumps(old))


def starts(folder, values):
    np.save(folder / "train.starts.npy", values, allow_pickle=True)


def tokens(folder, change):
    path = folder / "train.tokens"
    change(found := np.fromfile(path, "<u2"))
    found.tofile(path)


RECORDS = {
    "a list": "[]",
    "a number": "3",
    "nothing": "",
    "no JSON": "{",
    "no UTF-8": b"\xff\xfe",
    "deep": "[" * 100_000,
    "empty": "{}",
}
FIELDS = {
    "sha256": (None, 3, "", ["x"], "0" * 63),
    "dtype": (None, "float32", "int64", "object", 3, ["uint16"]),
    "tokens": (None, [], {}, {"train": 1.5, "validation": 1}, {"train": -1}),
    "documents": (None, "60", -1, 59, 1.5),
    "bytes": (None, "many", -1),
    "tokenizer": (None, 3, "", "bytes(", ["bytes"]),
    "tokenizer_sha256": ("", None, 3),
    "files": (None, [], {}, {"train.tokens": None}, {"train.tokens": "0" * 64}),
}
STARTS = {
    "floats": lambda s: s.astype(np.float64),
    "negative": lambda s: s - 1,
    "unsorted": lambda s: s[::-1].copy(),
    "doubled": lambda s: np.repeat(s, 2),
    "empty": lambda s: s[:0],
    "beyond": lambda s: s * 1000,
    "without the first": lambda s: s[1:],
    "two axes": lambda s: s[None],
    "a number": lambda s: s[0],
    "pickled": lambda s: s.astype(object),
    "words": lambda s: s.astype("U9"),
    "moved": lambda s: np.append(s[:-1], s[-1] + 1),
}


@pytest.mark.parametrize("kind", RECORDS)
def test_other_records_are_refused(kind, folder, refused):
    text = RECORDS[kind]
    text = text if isinstance(text, bytes) else text.encode()
    (folder / "corpus.json").write_bytes(text)
    with refused():
        open_corpus(folder, "bytes")


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field in FIELDS for value in FIELDS[field]]
)
def test_other_fields_are_refused(field, value, folder, refused):
    record(folder, **{field: value})
    with refused():
        open_corpus(folder, "bytes")


@pytest.mark.parametrize("is_older", [False, True])
@pytest.mark.parametrize("kind", STARTS)
def test_other_starts_are_refused(kind, is_older, folder, refused):
    if is_older:
        as_before(folder)
    starts(folder, STARTS[kind](np.load(folder / "train.starts.npy")))
    if kind == "moved" and is_older:  # Nothing contradicts it but the run's record.
        open_corpus(folder, "bytes")
        return
    with refused("train.starts.npy"):
        open_corpus(folder, "bytes")


@pytest.mark.parametrize("file", ["train.tokens", "train.starts.npy"])
@pytest.mark.parametrize("kind", ["missing", "empty", "pickled", "cut", "a directory"])
def test_other_files_are_refused(kind, file, folder, refused):
    path = folder / file
    content = path.read_bytes()
    path.unlink()
    if kind == "a directory":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes(
            {"empty": b"", "pickled": pickle.dumps([1]), "cut": content[:-1]}[kind]
        )
    with refused(file):
        open_corpus(folder, "bytes")


def test_an_archive_is_no_array(folder, refused):
    with open(folder / "train.starts.npy", "wb") as file:
        np.savez(file, a=np.arange(3))
    with refused("train.starts.npy", "integers, one for each document"):
        open_corpus(folder, "bytes")


@pytest.mark.parametrize(
    "gone", ["files", "tokenizer_sha256", *("train.tokens", "validation.starts.npy")]
)
def test_digests_that_are_gone_are_missed(gone, folder, refused):
    path = folder / "corpus.json"
    found = json.loads(path.read_text())
    del (found if gone in found else found["files"])[gone]
    path.write_text(json.dumps(found))
    with refused("corpus.json: ", "expected what `reslab data tokenize` writes"):
        open_corpus(folder, "bytes")


def test_a_corpus_of_an_older_version_is_not_verified_and_says_so(folder, capsys):
    as_before(folder)
    for _ in range(2):
        open_corpus(folder, "bytes")
    (said,) = capsys.readouterr().err.splitlines()
    assert f"{folder} was tokenized by an older version" in said


def test_shuffled_tokens_are_refused(folder, refused):
    before = open_corpus(folder, "bytes")
    tokens(folder, np.random.default_rng(0).shuffle)
    with refused("the corpus changed since it was tokenized", "train.tokens"):
        open_corpus(folder, "bytes")
    as_before(folder)  # Here the record of the run notices it.
    assert open_corpus(folder, "bytes").tokens_sha256 != before.tokens_sha256


@pytest.mark.parametrize("is_older", [False, True])
def test_ids_beyond_the_vocabulary_are_named(is_older, folder, refused):
    def change(found):
        found[7] = 4711

    tokens(folder, change)
    if is_older:
        as_before(folder)
    else:  # As if a tokenizer of more ids had written it.
        digests = json.loads((folder / "corpus.json").read_text())["files"]
        found = verification.content(folder / "train.tokens", "uint16").sha256
        record(folder, files=digests | {"train.tokens": found})
    with refused("token id 4711", "below the vocabulary 257"):
        open_corpus(folder, "bytes")


def test_a_large_file_is_read_again_only_after_a_change(
    folder, tmp_path, monkeypatch, refused
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(verification, "REMEMBERED", 1)
    monkeypatch.setattr(verification, "SETTLED", -1)
    reads, read = [], verification._read
    monkeypatch.setattr(verification, "_read", lambda *a: reads.append(a) or read(*a))
    one = open_corpus(folder, "bytes")
    assert len(reads) == 4
    assert open_corpus(folder, "bytes").tokens_sha256 == one.tokens_sha256
    assert len(reads) == 4
    for note in (tmp_path / "cache").rglob("*.json"):
        note.write_text("[]")  # A damaged note is as good as none.
    assert open_corpus(folder, "bytes").tokens_sha256 == one.tokens_sha256
    assert len(reads) == 8
    stamp = os.stat(folder / "train.tokens")
    tokens(folder, np.random.default_rng(0).shuffle)
    os.utime(folder / "train.tokens", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    with refused("the corpus changed"):
        open_corpus(folder, "bytes")


def test_a_file_that_was_just_written_is_not_remembered(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(verification, "REMEMBERED", 1)
    (folder / "train.tokens").touch()
    verification.content(folder / "train.tokens", "uint16")
    assert not list((tmp_path / "cache").rglob("*.json"))


@pytest.mark.parametrize("piece", [1, 3, 7, 64])
def test_pieces_do_not_matter(piece, tmp_path, monkeypatch):
    array = np.random.default_rng(0).integers(0, 2**32, 99, dtype=np.uint32)
    array.astype("<u4").tofile(tmp_path / "x")
    whole = verification.content(tmp_path / "x", "uint32")
    assert whole.largest == array.max()
    monkeypatch.setattr(verification, "PIECE", 4 + piece)
    assert verification.content(tmp_path / "x", "uint32") == whole


class Wrong:
    vocabulary_size, bos = 5, 0

    def encode(self, document):
        return np.asarray([int(c) for c in document.decode()])


def test_tokenizers_of_ones_own_are_held_to_their_vocabulary(refused):
    assert encode_document(Wrong(), b"1234").tolist() == [0, 1, 2, 3, 4]
    with refused("token id 7", "below the vocabulary 5"):
        encode_document(Wrong(), b"127")
    with refused("BOS inside a document"):
        encode_document(Wrong(), b"102")


@pytest.fixture
def words(tmp_path):
    """Saves a word-level tokenizer, with a setting changed."""

    def save(name="t.json", size=3, **settings):
        names = ["a", "<|end|>", "[PAD]", *map(str, range(size - 3))]
        made = tokenizers.Tokenizer(
            tokenizers.models.WordLevel(
                {name: index for index, name in enumerate(names)}, unk_token="a"
            )
        )
        made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
        made.add_special_tokens(["<|end|>", "[PAD]"])
        path = tmp_path / name
        made.save(str(path))
        content = json.loads(path.read_text())
        content.update(settings)
        path.write_text(json.dumps(content))
        return f"huggingface(path={str(path)!r}, bos_token='<|end|>')"

    return save


def test_documents_are_whole_and_only_their_own(words, capsys):
    cut = {
        "truncation": {
            "direction": "Right",
            "max_length": 4,
            "stride": 0,
            "strategy": "LongestFirst",
        },
        "padding": {
            "strategy": {"Fixed": 6},
            "direction": "Right",
            "pad_id": 2,
            "pad_to_multiple_of": None,
            "pad_type_id": 0,
            "pad_token": "[PAD]",
        },
    }
    made = registry.make("tokenizers", words(**cut))
    assert made.encode(b"a " * 100).tolist() == [0] * 100
    registry.make("tokenizers", words(**cut))
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "truncation and padding not applied" in said[0]
    ids = made.encode(b"a <|end|> a")
    assert made.bos == 1 and 1 not in ids
    assert encode_document(made, b"<|end|>")[0] == 1


def test_special_tokens_in_text_are_text(tmp_path):
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    level = tokenizers.pre_tokenizers.ByteLevel
    made.pre_tokenizer = level(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        special_tokens=["<|endoftext|>", "<|im|>"],
        initial_alphabet=level.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(["a b"], trainer)
    made.save(str(tmp_path / "t.json"))
    spec = f"huggingface(path={str(tmp_path / 't.json')!r}, bos_token='<|endoftext|>')"
    tokenizer = registry.make("tokenizers", spec)
    text = "one <|endoftext|> two <|im|> <|endoftext|>"
    ids = tokenizer.encode(text.encode())
    assert tokenizer.bos not in ids
    assert tokenizer.byte_lengths()[ids].sum() == len(text)
    assert tokenizer.decode(ids) == text


def test_what_a_tokenizer_loses_is_told_once(words, tmp_path, capsys):
    (tmp_path / "x.txt").write_text("a b c " * 50)  # Of one known word, and spaces.
    source = f"text(path={str(tmp_path / 'x.txt')!r})"
    load_corpus(source, words())
    load_corpus(source, words())
    changed, unknown = capsys.readouterr().err.splitlines()
    assert "changes 2 of the first 2 documents ('a b c a b c ' becomes" in changed
    assert unknown.startswith("100.00% of the tokens are unknown ones")
    load_corpus(source, "bytes")
    assert not capsys.readouterr().err


def test_ids_far_beyond_their_number_are_refused(words, tmp_path, refused):
    spec = words()
    content = json.loads((tmp_path / "t.json").read_text())
    content["model"]["vocab"]["far"] = 4_000_000_000
    (tmp_path / "t.json").write_text(json.dumps(content))
    with refused("has id 4000000000", "number of its tokens, 4"):
        registry.make("tokenizers", spec)


def test_dropout_is_refused(tmp_path, refused):
    model = tokenizers.models.BPE({"a": 0}, [], dropout=0.1)
    tokenizers.Tokenizer(model).save(str(tmp_path / "t.json"))
    with refused("draws its merges at random", "dropout 0.1"):
        registry.make("tokenizers", f"huggingface(path={str(tmp_path / 't.json')!r})")


def test_a_tokenizer_is_its_file_not_its_name(words, tmp_path, refused):
    one, same, other = words("one.json"), words("same.json"), words("o.json", size=4)
    text = f"text(path={str(tmp_path / 'x.txt')!r})"
    (tmp_path / "x.txt").write_text("a a a " * 50)
    tokenize(text, one, tmp_path / "made")
    assert open_corpus(tmp_path / "made", same).tokens_sha256
    with refused("tokens of another tokenizer"):
        open_corpus(tmp_path / "made", other)
    shutil.copy(tmp_path / "o.json", tmp_path / "one.json")
    with refused("tokens of another tokenizer", "the tokenizer changed"):
        open_corpus(tmp_path / "made", one)


def test_a_corpus_in_memory_has_no_files():
    assert load_corpus(SOURCE, "bytes").tokens_sha256 is None
    with pytest.raises(ReslabError):
        load_corpus("tokens(path='nowhere')", "bytes")
