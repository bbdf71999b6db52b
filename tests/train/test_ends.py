"""Documents end: the model learns where, and samples stop there."""

import json
import shutil

import jax
import numpy as np
import pytest

from reslab.cli import main
from reslab.core import config as configs
from reslab.core.errors import ReslabError
from reslab.train import generate, loop
from reslab.train.run import Run
from reslab.train.sampling import sample_run


@pytest.fixture
def run(trained):
    return trained / "0"


@pytest.fixture
def says(monkeypatch):
    """Lets the model say the bytes of a text, BOS for each `|`."""

    def answer(*texts):
        ids = [[0 if c == "|" else ord(c) + 1 for c in text] for text in texts]

        def said(model, variables, tokens, length, **_):
            return np.array([row[:length] for row in ids])

        monkeypatch.setattr(generate, "generate", said)

    return answer


@pytest.mark.parametrize(
    ("said", "options", "shown"),
    [
        ("a new| one", [], "a new"),
        ("| one", [], ""),
        ("no end here", [], "no end here"),
        ("a new| one", ["--stop", "n"], "a "),
        ("a new one", ["--stop", "ne", "--stop", " n"], "a"),
        ("a new| one", ["--stop", "one"], "a new"),
    ],
)
def test_a_sample_ends_with_its_document(said, options, shown, run, says, capsys):
    says(said)
    assert main(["generate", str(run), "--length", "11", *options]) == 0
    assert capsys.readouterr().out == shown + "\n"


def test_a_stop_must_be_text(run, capsys):
    assert main(["generate", str(run), "--stop", ""]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "stop: expected text" in line


def test_samples_keep_to_what_was_trained_or_say_so(run, says, capsys):
    config = Run(run).config()
    assert config.data.length == 16
    says("x" * 300)
    (text,) = sample_run(run, config, length=None)
    assert text == "x" * 15 and not capsys.readouterr().err
    (text,) = sample_run(run, config, length=None, prompt="abc")
    assert text == "abc" + "x" * 12 and not capsys.readouterr().err
    # None of the default length would fit.
    (text,) = sample_run(run, config, length=None, prompt="a" * 40)
    assert text == "a" * 40 + "x" * 200
    (line,) = capsys.readouterr().err.splitlines()
    assert "trained on 16 tokens at a time: a sample of 241" in line
    sample_run(run, config, length=16)
    assert "a sample of 17" in capsys.readouterr().err
    says("x" * 9 + "|" + "x" * 90)  # It ends before.
    sample_run(run, config, length=99)
    assert not capsys.readouterr().err


def test_a_run_of_an_older_version_keeps_its_targets(trained, tmp_path, brief_config):
    run = shutil.copytree(trained / "0", tmp_path / "run")
    older = json.loads((run / "config.json").read_text())
    assert older.pop("data.predicts_end") is True
    text = json.dumps(older, sort_keys=True, indent=1)
    (run / "config.json").write_text(text)
    record = json.loads((run / "run.json").read_text())
    record["config_sha256"] = configs.sha256_of_text(text)
    (run / "run.json").write_text(json.dumps(record))
    assert Run(run).config().data.predicts_end is False
    with pytest.raises(ReslabError, match=r"predicts_end=False resumes the run"):
        loop.train(brief_config(), run)


@pytest.mark.conformance
def test_the_end_of_a_document_is_learned(tmp_path, brief_config):
    lines = [json.dumps({"text": f"<{'abc'[i % 3] * 3}>"}) + "\n" for i in range(300)]
    (tmp_path / "short.jsonl").write_text("".join(lines))
    config = brief_config(
        data__source=f"jsonl(path={str(tmp_path / 'short.jsonl')!r})",
        optim__learning_rate=0.01,
        optim__schedule="constant",
        train__steps=150,
        train__eval_every=150,
        train__checkpoint_every=150,
        train__log_every=150,
    )
    loop.train(config, tmp_path / "run")
    texts = sample_run(tmp_path / "run", config, length=15, samples=8, temperature=0.5)
    assert all(text in ("<aaa>", "<bbb>", "<ccc>") for text in texts), texts


@pytest.mark.parametrize("temperature", [1e-4, 1e-30, 1e-38, 1e-300])
@pytest.mark.parametrize("options", [{}, {"top_p": 0.9}, {"top_k": 2}])
def test_a_tiny_temperature_takes_the_likeliest(temperature, options):
    for seed in range(20):
        draw = np.random.default_rng(seed)
        logits = draw.standard_normal((4, 9)) * 10.0 ** draw.integers(-3, 30)
        logits = jax.numpy.asarray(logits, jax.numpy.float32)
        key = jax.random.key(seed)
        found = generate.sample_token(logits, key, temperature=temperature, **options)
        second, first = np.sort(np.asarray(logits, np.float64))[:, -2:].T
        is_certain = first - second > 100 * temperature
        likeliest = np.argmax(logits, axis=-1)
        np.testing.assert_array_equal(
            np.asarray(found)[is_certain], likeliest[is_certain]
        )
