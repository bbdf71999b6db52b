"""The tokenizer beside the weights is that of the run."""

import hashlib
import json

import numpy as np
import pytest
import tokenizers

import reslab
from reslab.core.errors import ReslabError
from reslab.data.encoding import encode_sized
from reslab.data.sources.numbers import build as numbers
from reslab.data.tokenizers.ids import IdsTokenizer
from reslab.train.exporting import export_run
from reslab.train.importing import import_run, understood
from reslab.train.loading import load
from reslab.train.run import Run
from reslab.train.transform import transform_run
from tests.interop.conftest import GOLDENS, ONE, change_config, copied


def with_tokenizer(folder, words=90, special=("<s>", "</s>"), **config):
    """A checkpoint of 97 ids, with a tokenizer of single words."""
    copied("olmo2", folder, **config)
    vocabulary = {f"w{number}": number for number in range(words)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="w0"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.add_special_tokens(list(special))
    made.save(str(folder / "tokenizer.json"))
    return folder


def spec(folder):
    return understood(folder).fields["data.tokenizer"]


def test_a_document_begins_with_the_token_that_the_config_names(tmp_path):
    folder = with_tokenizer(tmp_path / "a", bos_token_id=91, eos_token_id=90)
    assert "bos_token='</s>'" in spec(folder)
    change_config(folder, bos_token_id=None)
    settings = {"bos_token": {"content": "<s>"}, "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert "bos_token='<s>'" in spec(folder)
    (folder / "tokenizer_config.json").unlink()
    assert "bos_token='<s>'" in spec(folder)  # EOS of config.json.
    change_config(folder, eos_token_id=[5, 90])
    assert "bos_token='w5'" in spec(folder)


def test_the_model_decides_the_number_of_ids(tmp_path):
    folder = with_tokenizer(tmp_path / "a")
    _, _, tokenizer = load(folder, mesh=ONE)
    assert tokenizer.vocabulary_size == 97
    assert tokenizer.byte_lengths().shape == (97,)
    assert tokenizer.encode(b"w7 w8").tolist() == [7, 8]
    beyond = with_tokenizer(tmp_path / "b", words=90, special=map(str, range(20)))
    assert load(beyond, mesh=ONE).tokenizer.vocabulary_size == 97
    words = with_tokenizer(tmp_path / "c", words=120)
    with pytest.raises(ReslabError, match="size: expected at least 122; got 97"):
        load(words, mesh=ONE)


@pytest.mark.conformance
def test_a_run_keeps_its_tokenizer_and_hands_it_on(tmp_path):
    folder = with_tokenizer(tmp_path / "hub")
    (tmp_path / "text.txt").write_text("w1 w2 w3 w4 w5\n" * 200)
    changes = {"data.source": f"text(path='{tmp_path}/*.txt')", "data.length": 16}
    import_run(folder, tmp_path / "run", changes.items())
    (tmp_path / "run").rename(tmp_path / "moved")
    config = Run(tmp_path / "moved").config()
    assert f"{tmp_path}/moved/huggingface/tokenizer.json" in config.data.tokenizer
    transform_run("change_residual", tmp_path / "moved", tmp_path / "other")
    text = (tmp_path / "other" / "config.json").read_text()
    assert "huggingface(path='huggingface/tokenizer.json'" in text
    export_run(tmp_path / "moved", tmp_path / "out")
    for name in ("tokenizer.json", "config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.conformance
def test_a_sample_ends_at_every_end_of_the_checkpoint(tmp_path):
    """Greedy samples, cut where either file names a token that is in them."""
    folder = copied("llama", tmp_path / "x", eos_token_id=None)
    import_run(folder, tmp_path / "run", [("data.length", 16)])

    def drawn():
        found = reslab.generate(tmp_path / "run", "5", length=8, temperature=0)
        return found[0].split()[1:]

    whole = drawn()
    assert len(whole) == 8
    kept = tmp_path / "run" / "huggingface"
    generation = {"eos_token_id": [127, int(whole[3])]}
    (kept / "generation_config.json").write_text(json.dumps(generation))
    assert drawn() == whole[: whole.index(whole[3])]
    assert reslab.load(tmp_path / "run").ends == {127, int(whole[3])}
    change_config(kept, eos_token_id=int(whole[0]))
    assert drawn() == []
    change_config(kept, eos_token_id="end")
    with pytest.raises(
        ReslabError, match='eos_token_id: expected token ids; got "end"'
    ):
        drawn()


def test_an_import_records_the_files_of_tensors(tmp_path):
    record = import_run(GOLDENS / "llama", tmp_path / "run")
    data = (GOLDENS / "llama" / "model.safetensors").read_bytes()
    wanted = {"model.safetensors": hashlib.sha256(data).hexdigest()}
    assert record["weights"] == wanted


def test_ids_are_numbers():
    tokenizer = IdsTokenizer(size=50, bos=3)
    document = b" 5 17\n49 "
    found = encode_sized(tokenizer, document, tokenizer.byte_lengths())
    assert found.tokens.tolist() == [3, 5, 17, 49]
    assert found.sizes.tolist() == [0, 3, 3, 3]
    assert tokenizer.decode(found.tokens) == "5 17 49"
    assert tokenizer.encode(b"  ").size == 0
    for wrong in (b"5 x", b"50", b"3", b"-1", b"9" * 50):
        with pytest.raises(ReslabError, match="tokenizer ids: expected numbers below"):
            tokenizer.encode(wrong)
    with pytest.raises(ReslabError, match="bos: expected below 50; got 50"):
        IdsTokenizer(size=50, bos=50)


def test_numbers_are_ids():
    documents = list(numbers(size=50, bos=3, documents=3, length=400).documents())
    tokenizer = IdsTokenizer(size=50, bos=3)
    found = np.concatenate([tokenizer.encode(one) for one in documents])
    assert set(found.tolist()) == set(range(50)) - {3}
    assert documents == list(
        numbers(size=50, bos=3, documents=3, length=400).documents()
    )
