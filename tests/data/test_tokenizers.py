import json
import sys

import numpy as np
import pytest
import tokenizers

from reslab.core import registry
from reslab.core.errors import ReslabError

TEXTS = ["def norm(x): return x / rms(x)", "the norm of the norm", "grüße, 世界 🌍"]


def make(spec):
    return registry.make("tokenizers", spec)


def test_bytes_round_trip():
    tokenizer = make("bytes")
    for document in (bytes(range(256)), "世界".encode(), b""):
        ids = tokenizer.encode(document)
        assert ids.dtype == np.uint16
        assert ids.tolist() == [byte + 1 for byte in document]
        assert tokenizer.decode(ids) == document.decode(errors="replace")


def test_bytes_decode_drops_what_is_no_byte():
    tokenizer = make("bytes")
    assert tokenizer.decode([0, 73, 0, 106, 257, 263, 511]) == "Hi"
    assert tokenizer.decode([]) == ""
    assert tokenizer.decode([0xE4 + 1]) == "\N{REPLACEMENT CHARACTER}"


def test_bytes_lengths():
    tokenizer = make("bytes")
    lengths = tokenizer.byte_lengths()
    assert lengths.shape == (tokenizer.vocabulary_size,) == (257,)
    assert lengths[tokenizer.bos] == 0 and (lengths[1:] == 1).all()


@pytest.fixture
def byte_level(tmp_path):
    """A small byte-level BPE file, like GPT-2's."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    return str(path)


@pytest.fixture
def byte_fallback(tmp_path):
    """A sentencepiece-like file: spaces as U+2581, unknown characters as bytes."""
    pieces = [f"<0x{byte:02X}>" for byte in range(256)] + ["▁", "a", "b", "ü", "▁a"]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            {piece: index for index, piece in enumerate(pieces)},
            [("▁", "a")],
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    tokenizer.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
        ]
    )
    path = tmp_path / "fallback.json"
    tokenizer.save(str(path))
    return str(path)


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_huggingface_round_trip_and_lengths(kind, request):
    tokenizer = make(f"huggingface(path={request.getfixturevalue(kind)!r})")
    lengths = tokenizer.byte_lengths()
    assert lengths.shape == (tokenizer.vocabulary_size,)
    for text in [*TEXTS, "ab aü aa", ""]:
        ids = tokenizer.encode(text.encode())
        assert (ids < tokenizer.vocabulary_size).all()
        assert tokenizer.decode(ids) == text
        assert lengths[ids].sum() == len(text.encode())


def test_huggingface_merges(byte_level):
    tokenizer = make(f"huggingface(path={byte_level!r})")
    assert len(tokenizer.encode(b"the norm")) < len(b"the norm")


def test_huggingface_bos_is_new_or_named(byte_level):
    added = make(f"huggingface(path={byte_level!r})")
    named = make(f"huggingface(path={byte_level!r}, bos_token='<|endoftext|>')")
    assert added.bos == named.vocabulary_size == added.vocabulary_size - 1
    assert named.bos == 0
    for tokenizer in (added, named):
        assert tokenizer.byte_lengths()[tokenizer.bos] == 0
        ids = [tokenizer.bos, *tokenizer.encode(b"norm"), added.bos, 10_000]
        assert tokenizer.decode(ids) == "norm"


def test_huggingface_refuses(tmp_path, byte_level, refused, monkeypatch):
    (tmp_path / "text.json").write_text("hello")
    (tmp_path / "other.json").write_text('{"model": 3}')
    (tmp_path / "binary.json").write_bytes(b"\xff\0")
    for name in ("absent.json", "text.json", "other.json", "binary.json"):
        with refused("tokenizer.json", name):
            make(f"huggingface(path={str(tmp_path / name)!r})")
    with refused("tokenizer.json"):
        make("huggingface")
    with refused("path", "expected str"):
        make("huggingface(path=3)")
    with refused("'<|endoftex|>'", "try: '<|endoftext|>'"):
        make(f"huggingface(path={byte_level!r}, bos_token='<|endoftex|>')")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with refused("'tokenizers' is not installed", "reslab[hf]"):
        make(f"huggingface(path={byte_level!r})")


@pytest.mark.parametrize(
    "model",
    [
        {
            "type": "BPE",
            "continuing_subword_prefix": "##########",
            "vocab": {"a": 0, "b": 1, "ab": 2},
            "merges": ["a b"],
        },
        {"type": "WordPiece", "unk_token": "[UNK]", "vocab": {"a": 0}},
    ],
    ids=["panic", "no unknown"],
)
def test_a_file_that_contradicts_itself_is_refused(tmp_path, capfd, model):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    with pytest.raises(ReslabError, match=r"expected a tokenizer\.json; got"):
        make(f"huggingface(path={str(path)!r})")
    assert capfd.readouterr().err == ""
