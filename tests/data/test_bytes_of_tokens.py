"""Every token stands for bytes of its document, and they add up to it."""

import collections
import gzip
import json
import math
import pickle
import random
import types

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from reslab.core import registry
from reslab.core.config import load
from reslab.data import token_files
from reslab.data.corpus import TokenStream, held_out_corpus, load_corpus
from reslab.data.encoding import SizesById, encode_sized, say_once
from reslab.data.spans import character_starts, spread
from reslab.data.token_files import TokenFile
from reslab.data.tokenized import open_corpus, tokenize
from reslab.data.windows import WindowSource
from reslab.train import corpora
from reslab.train.tasks.language import Language

TEXTS = [
    "The norm of the norm.\r\nA line\r\n\r\n\tand  two   spaces",
    "\ufeffgrüße, 世界 🌍 naïve e\u0301tude \u2026 ﬁn",
    "<s> [UNK] <|endoftext|> [SEP] </s> ▁ <0x41> ##s",
    "HELLO World hello 1 2 3\x07\u200b end ",
    "a",
]


def gpt2():
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(TEXTS, trainer)
    return made


def llama():
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    pieces = [*(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abdehlnorstw", "▁a"]
    vocabulary |= {piece: 3 + index for index, piece in enumerate(pieces)}
    made = tokenizers.Tokenizer(
        models.BPE(
            vocabulary,
            [("▁", "a")],
            byte_fallback=True,
            fuse_unk=True,
            unk_token="<unk>",
        )
    )
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    return made


def bert():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "hello", "the", "norm", "##s", "a"]
    words += [*"ehlnotwz.,123", "##e", "##l", "##n", "##o", "##r", "##t", "##d"]
    made = tokenizers.Tokenizer(
        models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]")
    )
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    made.enable_truncation(8)
    made.enable_padding(length=16)
    return made


def unigram():
    """As of T5 and XLM-R."""
    pieces = ["<pad>", "</s>", "<unk>", "▁the", "▁", *"aehlnorstw", "▁no", "rm"]
    made = tokenizers.Tokenizer(
        models.Unigram([(p, -float(i)) for i, p in enumerate(pieces)], unk_id=2)
    )
    made.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.add_special_tokens(["<pad>", "</s>", "<unk>"])
    return made


def words():
    made = tokenizers.Tokenizer(
        models.WordLevel({"[UNK]": 0, "the": 1, "a": 2}, unk_token="[UNK]")
    )
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


FILES = {one.__name__: one for one in (gpt2, llama, bert, unigram, words)}
NORMALIZERS = [
    normalizers.Lowercase(),
    normalizers.NFD(),
    normalizers.NFKC(),
    normalizers.StripAccents(),
    normalizers.Strip(),
    normalizers.Nmt(),
    normalizers.Prepend("▁"),
    normalizers.Replace(" ", "▁"),
    normalizers.Replace("e", ""),
    normalizers.BertNormalizer(),
]
PRE_TOKENIZERS = [
    pre_tokenizers.ByteLevel(add_prefix_space=True),
    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    pre_tokenizers.Metaspace(),
    pre_tokenizers.Whitespace(),
    pre_tokenizers.BertPreTokenizer(),
    pre_tokenizers.Digits(individual_digits=True),
    pre_tokenizers.Punctuation("removed"),
]


@pytest.fixture
def spec(tmp_path):
    def save(made, bos=None):
        path = tmp_path / "tokenizer.json"
        made.save(str(path))
        named = f", bos_token={bos!r}" if bos else ""
        return f"huggingface(path={str(path)!r}{named})"

    return save


def drawn(draw, size):
    """A text of characters of every width, of words and of what names tokens."""
    pieces = [*TEXTS, " ", "\r\n", "\n", "the", "a", "É", "ß", "İ", "한", "\ufeff"]
    return "".join(draw.choice(pieces) for _ in range(size))


@pytest.mark.parametrize("seed", range(20))
def test_drawn_tokenizers_count_every_byte_of_drawn_texts(seed, spec):
    draw = random.Random(seed)
    made = draw.choice([*FILES.values()])()
    if draw.random() < 0.7:
        chosen = draw.sample(NORMALIZERS, draw.randint(1, 3))
        made.normalizer = normalizers.Sequence(chosen)
    if draw.random() < 0.7:
        made.pre_tokenizer = draw.choice(PRE_TOKENIZERS)
    tokenizer = registry.make("tokenizers", spec(made))
    table = tokenizer.byte_lengths()
    for _ in range(20):
        document = drawn(draw, draw.randint(0, 8)).encode()
        if draw.random() < 0.2:  # Cut where it is not UTF-8.
            document = document[draw.randint(0, 4) : -draw.randint(1, 4)]
        one = encode_sized(tokenizer, document, table)
        sizes = one.all_sizes(table)
        assert one.tokens.tolist() == [
            tokenizer.bos,
            *tokenizer.encode(document).tolist(),
        ]
        assert sizes[0] == 0 and len(sizes) == len(one.tokens)
        if len(one.tokens) > 1:
            assert sizes.sum() == len(document)


def test_errors_that_cancel_are_none_of_the_sizes(spec):
    """A space is put in front, and one is joined: the sum is right by chance."""
    tokenizer = registry.make("tokenizers", spec(unigram()))
    ids, sizes = tokenizer.encode_sized(b"the  norm")
    assert tokenizer.byte_lengths()[ids].tolist() == [4, 3, 2]
    assert sizes.tolist() == [3, 4, 2]


@pytest.mark.parametrize("document", [b"\xff\xfe\xf0\x9f\x98x", b"a\xe4\xb8", b"\xc3"])
def test_characters_are_those_that_python_reads(document):
    text = document.decode(errors="replace")
    starts, is_utf8 = character_starts(document)
    assert not is_utf8
    assert len(starts) == len(text) + 1 and starts[-1] == len(document)
    for index, character in enumerate(text):
        own = document[starts[index] : starts[index + 1]]
        assert own.decode(errors="replace") == character


def test_tokens_of_one_character_share_it():
    assert spread(np.array([0, 3, 3, 3, 4]), 6).tolist() == [0, 1, 1, 1, 3]
    assert spread(np.array([5, 2, 9]), 7).sum() == 7
    assert spread(np.zeros(0, int), 0).tolist() == []


def lines(path, texts):
    """A file of JSON lines, packed as its name says."""
    raw = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    if path.suffix == ".gz":
        raw = gzip.compress(raw)
    if path.suffix == ".zst":
        raw = pytest.importorskip("zstandard").compress(raw)
    path.write_bytes(raw)
    return f"jsonl(path={str(path)!r})"


def nll_of(targets):
    """What a model could say of a target: any function of it."""
    return 1.0 + targets % 7


def evaluated(corpus, tokenizer, length, predicts_end=True):
    """Bits per byte as training and `reslab eval` compute them."""
    model = types.SimpleNamespace(
        apply=lambda variables, tokens, targets, **_: (
            (nll_of(np.asarray(targets, np.float64)), None),
            {},
        )
    )
    config = load("base")
    config.data.tokenizer, config.data.length = tokenizer, length
    config.data.predicts_end = predicts_end
    task = Language(config)
    task.corpus = corpus
    totals = collections.Counter()
    for batch in task.validation_batches(1):
        sums = task.loss_sums(model, {}, batch)[1]
        totals.update({name: float(value) for name, value in sums.items()})
    return task.metrics(totals)["bpb"], totals


@pytest.mark.parametrize(
    ("name", "suffix"), [*zip(FILES, ["", ".gz", ".zst", "", ""], strict=True)]
)
def test_bits_per_byte_are_of_the_documents(name, suffix, spec, tmp_path, capsys):
    made = FILES[name]()
    tokenizer = spec(made)
    draw = random.Random(0)
    texts = [*TEXTS, *(drawn(draw, 4) for _ in range(20)), "the a the"]
    source = lines(tmp_path / f"a.jsonl{suffix}", texts)
    say_once.cache_clear()
    corpus = held_out_corpus(source, tokenizer)
    # Counted again, by the library alone.
    made.no_truncation()
    made.no_padding()
    made.encode_special_tokens = True
    nats, size = 0.0, 0
    for text in texts:
        ids = made.encode(text, add_special_tokens=False).ids
        nats += sum(nll_of(index) for index in ids)
        size += len(text.encode()) if ids else 0
    right = nats / (size * math.log(2))
    count = len(corpus.validation.tokens) - 1
    bits, totals = evaluated(corpus, tokenizer, count)
    assert abs(bits - right) <= 1e-9 * right
    assert totals["bytes"] == size
    # Ends of documents are in the loss, and not in bits per byte.
    same, without = evaluated(corpus, tokenizer, count, predicts_end=False)
    assert same == bits
    ends = len(texts) - 1
    assert totals["tokens"] == count == without["tokens"] + ends
    end = nll_of(corpus.tokenizer.bos)
    assert totals["nll"] == pytest.approx(without["nll"] + ends * end)
    # Windows cut documents; all of them but a remainder count the same.
    assert corpus.validation.sizes is not None
    for length in (3, 64):
        kept = count // length * length
        cut = int(corpus.validation.sizes[kept + 1 : count + 1].sum())
        assert evaluated(corpus, tokenizer, length)[1]["bytes"] == size - cut
    said = capsys.readouterr().err
    if name == "gpt2":
        assert not said
    else:
        assert "becomes" in said
    assert ("unknown ones" in said) == (name in ("bert", "unigram", "words"))


@pytest.mark.parametrize("name", FILES)
def test_tokens_on_disk_count_the_same(name, spec, tmp_path, monkeypatch):
    monkeypatch.setattr(token_files, "BUFFER", 64)
    tokenizer = spec(FILES[name]())
    # The first documents need no sizes, whatever the tokenizer.
    source = lines(tmp_path / "a.jsonl", ["the", *["the"] * 9, *TEXTS * 9])
    record = tokenize(source, tokenizer, tmp_path / "made")
    assert record["has_sizes"] == (name != "gpt2")
    loaded, kept = (
        load_corpus(source, tokenizer),
        open_corpus(tmp_path / "made", tokenizer),
    )
    for one, other in (
        (loaded.train, kept.train),
        (loaded.validation, kept.validation),
    ):
        np.testing.assert_array_equal(np.asarray(one.sizes), np.asarray(other.sizes))
        windows = WindowSource(one, 8), WindowSource(other, 8)
        packed = [pickle.loads(pickle.dumps(window)) for window in windows]
        for index in (0, 1, len(windows[0]) - 1):
            sizes = [window[index]["sizes"].tolist() for window in (*windows, *packed)]
            assert sizes == [sizes[0]] * 4
    hosts = corpora.shared(tmp_path / "hosts", source, tokenizer).validation.sizes
    np.testing.assert_array_equal(
        np.asarray(hosts), np.asarray(loaded.validation.sizes)
    )
    mixed = load_corpus(f"mixture(sources=({source!r}, {source!r}))", tokenizer)
    total = np.asarray(mixed.validation.sizes).sum()
    assert total == 2 * np.asarray(loaded.validation.sizes).sum()


def test_sizes_on_disk_are_verified(spec, tmp_path, refused):
    tokenizer = spec(llama())
    folder = tmp_path / "made"
    tokenize(lines(tmp_path / "a.jsonl", TEXTS * 9), tokenizer, folder)
    path = folder / "train.sizes"
    raw = bytearray(path.read_bytes())
    raw[4] += 1
    path.write_bytes(raw)
    with refused("the corpus changed since it was tokenized", "train.sizes"):
        open_corpus(folder, tokenizer)
    path.write_bytes(raw[:-4])
    with refused("train.sizes", "tokens"):
        open_corpus(folder, tokenizer)
    path.unlink()
    with refused("train.sizes"):
        open_corpus(folder, tokenizer)


@pytest.mark.parametrize("name", FILES)
def test_an_older_corpus_is_exact_or_refused(name, spec, tmp_path, refused):
    tokenizer, folder = spec(FILES[name]()), tmp_path / "made"
    record = tokenize(lines(tmp_path / "a.jsonl", TEXTS * 9), tokenizer, folder)
    before = open_corpus(folder, tokenizer).tokens_sha256
    del record["has_sizes"]
    (folder / "corpus.json").write_text(json.dumps(record))
    if name == "gpt2":
        assert open_corpus(folder, tokenizer).tokens_sha256 == before
    else:
        with refused("older version, which miscounted its bytes", "its tokens stay"):
            open_corpus(folder, tokenizer)


def test_ids_of_a_file_that_changes_have_some_size():
    sizes = SizesById(np.array([1, 2**16 - 1]), np.array([0, 5, 7]))
    assert np.asarray(sizes).tolist() == [5, 7]


class Careless:
    """A tokenizer whose table is wrong."""

    vocabulary_size, bos = 257, 256

    def encode(self, document):
        return np.frombuffer(document, np.uint8)

    def decode(self, ids):
        return bytes(i for i in ids if i < 256).decode()

    def byte_lengths(self):
        return np.full(257, 2)


def test_wrong_tables_are_refused(refused):
    with refused("miscounts bytes", "expected 2", "encode_sized"):
        encode_sized(Careless(), b"ab", Careless().byte_lengths())


def test_a_token_file_of_4_gib_is_not_read_whole(tmp_path):
    path = tmp_path / "train.tokens"
    with path.open("wb") as file:
        file.truncate(2**32)
        file.seek(2**32 - 4)
        file.write(np.array([7, 8], "<u2").tobytes())
    tokens = TokenFile(str(path), "uint16")
    starts = np.zeros(1, np.int64)
    sizes = SizesById(tokens, np.ones(9, np.int32))
    windows = WindowSource(TokenStream(tokens, starts, sizes), 1024)
    assert len(windows) == (2**31 - 1) // 1024
    assert tokens[2**31 - 2 :].tolist() == [7, 8]
    assert windows[len(windows) - 1]["tokens"].tolist() == [0] * 1024
