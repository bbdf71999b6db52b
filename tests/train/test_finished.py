"""A finished run stands without its data, and refuses others."""

import pathlib
import shutil

import pytest

from reslab.cli import main
from reslab.core.errors import ReslabError
from reslab.data.tokenizers.bytes import BytesTokenizer
from reslab.runtime.storage import StorageFailed
from reslab.train import loop

SMALL = str(pathlib.Path(__file__).parent.with_name("small.py"))


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "corpus.txt"
    path.write_text("a man a plan a canal " * 200)
    return path


@pytest.mark.conformance
def test_a_run_ends_and_stands_without_its_corpus(
    corpus, brief_config, capsys, monkeypatch
):
    config = brief_config(data__source=f"text(path={str(corpus)!r})")
    result = loop.train(
        config, "run", after_step=lambda step: step == 2 and corpus.rename("away.txt")
    )
    assert loop.train(config, "run") == result
    said = capsys.readouterr().err
    assert "its data were not compared" in said and "already finished" in said
    shutil.copy("away.txt", corpus)
    monkeypatch.setattr(BytesTokenizer, "encode", None)
    assert loop.train(config, "run") == result
    corpus.write_text("a man a plan a canoe " * 200)
    with pytest.raises(ReslabError, match="the corpus changed since the run began"):
        loop.train(config, "run")


@pytest.mark.conformance
def test_a_command_encodes_each_document_once(corpus, monkeypatch, capsys):
    calls, encode = [], BytesTokenizer.encode
    monkeypatch.setattr(
        BytesTokenizer,
        "encode",
        lambda self, document: calls.append(document) or encode(self, document),
    )
    corpus.write_text("a man a plan a canal " * 200)
    source = f"data.source=text(path={str(corpus)!r})"
    arguments = ["train", "--config", SMALL, "--run", "run", "--set", source]
    assert main(arguments) == 0
    assert len(calls) == 2 and "trigram counts" in capsys.readouterr().out
    assert main(arguments) == 0
    assert len(calls) == 4 and "trigram counts" in capsys.readouterr().out
    corpus.unlink()
    assert main(arguments) == 0
    assert len(calls) == 4 and "this model" in capsys.readouterr().out


@pytest.mark.parametrize(
    "error", [ReslabError("gone"), StorageFailed("full"), OSError(28, "full")]
)
def test_what_comes_after_the_result_spoils_nothing(error, monkeypatch, capsys):
    def fail(*arguments, **keywords):
        raise error

    monkeypatch.setattr(loop, "train", lambda *_, **__: {"eval_bpb": 1.0})
    monkeypatch.setattr("reslab.train.api.generate", fail)
    monkeypatch.setattr("reslab.study.report.write_report", fail)
    assert main(["train", "--config", SMALL, "--run", "absent"]) == 0
    said = capsys.readouterr()
    assert "this model       1.000" in said.out and "reslab show absent" in said.out
    lines = [line for line in said.err.splitlines() if line.startswith("no ")]
    assert [line.split(":")[0] for line in lines] == ["no summary", "no report"]
