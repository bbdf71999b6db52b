import subprocess
import sys

import numpy as np
import pytest

from reslab.data.corpus import load_corpus


def texts(stream, tokenizer):
    return [tokenizer.decode(ids) for ids in np.split(stream.tokens, stream.starts[1:])]


def write(folder, contents):
    folder.mkdir(exist_ok=True)
    for index, content in enumerate(contents):
        (folder / f"{index:04}.txt").write_text(content)
    return f"text(path={str(folder)!r})"


def test_every_twentieth_document_is_held_out(tmp_path):
    contents = [f"document {index}" for index in range(45)]
    corpus = load_corpus(write(tmp_path, contents), "bytes")
    assert texts(corpus.validation, corpus.tokenizer) == contents[::20]
    expected = [text for index, text in enumerate(contents) if index % 20]
    assert texts(corpus.train, corpus.tokenizer) == expected
    assert corpus.documents == 45
    assert corpus.bytes == sum(map(len, contents))


def test_streams_are_bos_and_bytes(tmp_path):
    corpus = load_corpus(write(tmp_path, ["held", "ab", "", "c"]), "bytes")
    assert corpus.train.tokens.dtype == np.uint16
    assert corpus.train.tokens.tolist() == [0, 98, 99, 0, 0, 100]
    assert corpus.train.starts.tolist() == [0, 3, 4]


def test_one_document_is_cut_at_a_character(tmp_path):
    text = "x" * 94 + "世" * 2  # 100 bytes; the last five begin inside a character
    path = tmp_path / "one.txt"
    path.write_text(text, encoding="utf-8")
    corpus = load_corpus(f"text(path={str(path)!r})", "bytes")
    assert texts(corpus.train, corpus.tokenizer) == ["x" * 94]
    assert texts(corpus.validation, corpus.tokenizer) == ["世世"]
    path.write_text("y" * 200)
    corpus = load_corpus(f"text(path={str(path)!r})", "bytes")
    assert len(corpus.validation.tokens) == 1 + 10
    assert corpus.bytes == 200


def test_a_source_keeps_its_own_validation_split(tmp_path, monkeypatch):
    (tmp_path / "own_split_source.py").write_text(
        "class Source:\n"
        "    def documents(self):\n"
        "        return [b'a', b'b']\n"
        "    def validation_documents(self):\n"
        "        return [b'c']\n"
        "build = Source\n"
    )
    (tmp_path / "package").mkdir()
    (tmp_path / "own_split_source.py").rename(tmp_path / "package" / "own.py")
    monkeypatch.syspath_prepend(tmp_path)
    corpus = load_corpus("package.own", "bytes")
    assert texts(corpus.train, corpus.tokenizer) == ["a", "b"]
    assert texts(corpus.validation, corpus.tokenizer) == ["c"]


def test_sha256_tells_contents_orders_and_boundaries_apart(tmp_path):
    variants = [
        ["one", "two", "three"],
        ["one", "two", "threE"],
        ["one", "three", "two"],
        ["one", "twot", "hree"],
        ["one", "two", "three", ""],
        ["onet", "wo", "three"],
    ]
    digests = [
        load_corpus(write(tmp_path / str(index), contents), "bytes").sha256
        for index, contents in enumerate(variants)
    ]
    assert len(set(digests)) == len(variants)
    again = load_corpus(write(tmp_path / "again", variants[0]), "bytes").sha256
    assert again == digests[0] and len(again) == 64


def test_the_synthetic_corpus_is_the_same_everywhere():
    corpus = load_corpus("synthetic", "bytes")
    assert corpus.sha256 == (
        "3f70da580ec61850f4d8ab16c958f49cc4189bb5863bd087baf591a423a42d6e"
    )


def test_large_vocabularies_take_wider_tokens(tmp_path, monkeypatch):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "wide.py").write_text(
        "import numpy as np\n"
        "class Wide:\n"
        "    vocabulary_size, bos = 100_001, 100_000\n"
        "    def encode(self, document):\n"
        "        return np.full(len(document), 70_000)\n"
        "build = Wide\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    corpus = load_corpus(write(tmp_path / "text", ["held", "ab"]), "package.wide")
    assert corpus.train.tokens.dtype == np.uint32
    assert corpus.train.tokens.tolist() == [100_000, 70_000, 70_000]


def test_an_empty_split_is_refused(tmp_path, refused):
    with refused("train split", "more text"):
        load_corpus(write(tmp_path, ["x"]), "bytes")
    with refused("train split"):
        load_corpus(write(tmp_path / "two", ["held out", ""]), "bytes")


@pytest.mark.parametrize(
    ("source", "tokenizer", "piece"),
    [
        ("synthetik", "bytes", "try: 'synthetic'"),
        ("synthetic(document=3)", "bytes", "try: 'documents'"),
        ("synthetic(documents='3')", "bytes", "expected int"),
        ("synthetic(", "bytes", "malformed spec"),
        ("synthetic", "byte", "try: 'bytes'"),
    ],
)
def test_wrong_specs_are_refused(source, tokenizer, piece, refused):
    with refused(piece):
        load_corpus(source, tokenizer)


def test_the_corpus_needs_neither_tensorflow_nor_jax():
    code = (
        "import sys; from reslab.data.corpus import load_corpus\n"
        "load_corpus('synthetic', 'bytes')\n"
        "heavy = {'jax', 'grain', 'tensorflow', 'tensorflow_datasets', 'tokenizers'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
