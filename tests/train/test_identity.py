"""A run is continued, evaluated and read with its own checkpoints and data only."""

import contextlib
import hashlib
import io
import json
import os
import shutil

import jax
import numpy as np
import pytest
import tokenizers

from reslab.cli import main
from reslab.core import config as configs
from reslab.core.errors import ReslabError
from reslab.data.tokenized import tokenize
from reslab.drill.exchange import USUAL
from reslab.observe.writers.jsonl import JsonLines
from reslab.train import identity, loop
from reslab.train.run import Run

CLOCKS = ("elapsed_seconds", "tokens_per_second", "step_seconds")


@pytest.fixture
def runs(trained, tmp_path):
    """Copies of both, stopped after their last checkpoint but one."""
    for seed in "01":
        shutil.copytree(trained / seed, tmp_path / seed)
        (tmp_path / seed / "result.json").unlink()
        shutil.rmtree(tmp_path / seed / "checkpoints" / "4")
    return tmp_path / "0", tmp_path / "1"


def say(*command):
    """What a command comes to, and what it says on standard error."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = main([str(word) for word in command])
    return code, said.getvalue()


def refused(*command):
    code, said = say(*command)
    assert code == 2 and len(said.splitlines()) == 1, said
    return said


def go_on(run):
    return loop.train(Run(run).config(), run)


def unusual(said):
    """The lines that not every run says."""
    return [line for line in said.splitlines() if not USUAL.match(line)]


def told(capsys):
    """The unusual lines on standard error."""
    return unusual(capsys.readouterr().err)


def rows(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def readers(run, out):
    return (
        ["eval", run],
        ["generate", run, "--length", "4"],
        ["inspect", run, "--probe", "stream"],
        ["transform", "fuse_norm", run, "--out", out],
        ["train", "--from-run", run, "--run", out, "--continue-from", run],
    )


def test_a_checkpoint_names_its_run(runs):
    record = json.loads((runs[0] / "run.json").read_text())
    sealed = json.loads(
        (runs[0] / "checkpoints" / "2" / "integrity" / "metadata").read_text()
    )["record"]
    assert sealed["identity"] == {
        "run": record["id"],
        "config": configs.sha256(Run(runs[0]).config()),
        "code": identity.of_code(),
        "corpus": record["corpus"]["sha256"],
        "tokenizer": record["corpus"]["tokenizer_sha256"],
    }
    other = json.loads((runs[1] / "run.json").read_text())
    assert record["id"] != other["id"] and len(record["id"]) == 16


def test_another_runs_checkpoints_are_refused_by_name(runs, tmp_path):
    ids = [json.loads((run / "run.json").read_text())["id"] for run in runs]
    shutil.rmtree(runs[0] / "checkpoints" / "2")
    shutil.copytree(runs[1] / "checkpoints" / "2", runs[0] / "checkpoints" / "2")
    with pytest.raises(ReslabError) as caught:
        go_on(runs[0])
    assert all(one in str(caught.value) for one in ids)
    for command in readers(runs[0], tmp_path / "out"):
        said = refused(*command)
        assert all(one in said for one in ids), said
    assert not (tmp_path / "out").exists()


def test_a_copy_of_a_whole_run_is_the_run(runs, tmp_path):
    shutil.copytree(runs[0], tmp_path / "copy")
    runs[0].rename(tmp_path / "moved")
    assert go_on(tmp_path / "copy")["eval_bpb"] == go_on(tmp_path / "moved")["eval_bpb"]


def test_a_config_that_was_edited_is_refused_without_its_record(runs):
    (runs[0] / "run.json").unlink()
    assert say("eval", runs[0])[0] == 0
    path = runs[0] / "config.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 7'))
    assert "trained with another config" in refused("eval", runs[0])


def test_records_exchanged_between_runs_are_refused(runs):
    for name in ("run.json", "config.json"):
        both = [run / name for run in runs]
        texts = [path.read_text() for path in both]
        for path, text in zip(both, reversed(texts), strict=True):
            path.write_text(text)
        refused("eval", runs[0])
    assert "another run's" in refused("eval", runs[0])  # Now both are exchanged.


def as_before(run):
    """Takes from a run what its checkpoints and record did not have before."""
    path = run / "run.json"
    record = json.loads(path.read_text())
    del record["id"], record["corpus"]["tokenizer_sha256"]
    path.write_text(json.dumps(record))
    for path in run.glob("checkpoints/*/integrity/metadata"):
        record = json.loads(path.read_text())["record"]
        del record["identity"], record["summary"]
        seal = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
        path.write_text(json.dumps({"record": record, "sha256": seal}))


@pytest.mark.conformance
def test_runs_of_older_versions_go_on(runs, trained, capsys):
    as_before(runs[0])
    assert say("eval", runs[0]) == (0, "")
    found = go_on(runs[0])
    whole = json.loads((trained / "0" / "result.json").read_text())
    for result in (found, whole):
        for clock in CLOCKS:
            result.pop(clock, None)
    assert found == whole
    assert not told(capsys)
    assert say("generate", runs[0], "--length", "4")[0] == 0


def test_other_code_is_one_warning(runs, monkeypatch, capsys):
    monkeypatch.setattr(identity, "of_code", lambda: "reslab 9.9.9, commit 123")
    for command in (["eval", runs[0]], ["inspect", runs[0], "--probe", "stream"]):
        identity._tell_of_code.cache_clear()
        code, said = say(*command)
        assert code == 0
        (line,) = unusual(said)
        assert "now reslab 9.9.9" in line
    identity._tell_of_code.cache_clear()
    go_on(runs[0])
    (line,) = told(capsys)
    assert "by other code" in line


def test_a_result_is_that_of_an_unbroken_run(trained, tmp_path):
    run = shutil.copytree(trained / "0", tmp_path / "run")
    whole = (run / "result.json").read_text()
    (run / "result.json").unlink()
    assert json.loads(whole) == go_on(run)
    assert (run / "result.json").read_text() == whole
    assert {"loss", "eval_bpb", "tokens_per_second"} <= json.loads(whole).keys()


@pytest.mark.parametrize(
    "kind",
    [
        "deleted",
        "doubled",
        *(
            pytest.param(kind, marks=pytest.mark.exhaustive)
            for kind in ("damaged", "another's", "cut")
        ),
    ],
)
def test_metrics_that_are_not_the_runs_are_set_aside(kind, runs, trained, capsys):
    path = runs[0] / "metrics.jsonl"
    text = path.read_text()
    if kind == "deleted":
        path.unlink()
    elif kind == "another's":
        shutil.copy(runs[1] / "metrics.jsonl", path)
    else:
        new = {"doubled": 2 * text, "damaged": text.replace("1", "2", 1), "cut": ""}
        path.write_text(new[kind])
    go_on(runs[0])
    (line,) = told(capsys)
    assert "metrics.jsonl" in line and "begins after step 2" in line
    first, *rest = rows(runs[0])
    assert first == {"step": 2, "begins_after": 2}
    assert [row["step"] for row in rest] == [3, 4]
    aside = list(runs[0].glob("damaged-metrics-*.jsonl"))
    assert len(aside) == (kind not in ("deleted", "cut"))
    (runs[0] / "result.json").unlink()  # The new file is the run's own.
    go_on(runs[0])
    assert not told(capsys)
    assert say("report", runs[0], "--out", runs[0] / "page.html")[0] == 0


@pytest.mark.parametrize("kind", ["deleted", "doubled"])
def test_metrics_are_missed_while_the_run_goes_on(kind, tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    lines = JsonLines(path)
    for step in (1, 2):
        lines.write(step, {"loss": 1.0})
    if kind == "deleted":
        path.unlink()
    else:
        path.write_text(2 * path.read_text())
    for step in (3, 4):
        lines.write(step, {"loss": 1.0})
    lines.close()
    (said,) = told(capsys)
    assert "begins after step 2" in said
    assert [row["step"] for row in rows(tmp_path)] == [2, 3, 4]
    assert rows(tmp_path)[0] == {"step": 2, "begins_after": 2}
    folder = tmp_path / "folder"
    folder.mkdir()
    lines = JsonLines(folder / "metrics.jsonl")
    folder.rename(tmp_path / "renamed")
    lines.write(1, {"loss": 1.0})  # The next save says it.
    lines.close()
    assert rows(tmp_path / "renamed") and not folder.exists()


@pytest.mark.conformance
def test_a_state_that_is_not_finite_is_no_checkpoint(tmp_path, brief_config):
    config = brief_config(
        train__checkpoint_every=1,
        optim__learning_rate=3.4e38,
        optim__schedule="constant",
    )
    for policy in ("halt", "rollback"):
        config.train.on_bad_step = policy
        with pytest.raises(loop.Diverged, match="step 1 is not saved"):
            loop.train(config, tmp_path / policy)
        assert not list((tmp_path / policy / "checkpoints").glob("[0-9]*"))


def test_a_loss_that_is_not_finite_is_no_evaluation(runs, monkeypatch):
    from reslab.train.evaluate import Evaluator

    monkeypatch.setattr(Evaluator, "__call__", lambda *_: {"eval_loss": np.nan})
    assert "expected a finite value; got nan" in refused("eval", runs[0])


@pytest.mark.conformance
def test_a_gradient_of_zero_is_told_once(tmp_path, brief_config, capsys):
    config = brief_config(model__embedding_std=0.0, model__tie_embeddings=True)
    with contextlib.suppress(loop.Diverged):
        loop.train(config, tmp_path / "run")
    said = capsys.readouterr().err
    assert said.count("the gradient is exactly 0") == 1


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "run.json", "result.json", "probes.jsonl"]
)
def test_what_is_no_runs_is_not_touched(name, tmp_path, brief_config):
    mine = tmp_path / "d" / name
    mine.parent.mkdir()
    mine.write_text('{"eval_bpb": 1.0}')
    with pytest.raises(ReslabError, match="of an unknown run"):
        loop.train(brief_config(), mine.parent)
    assert [path.name for path in mine.parent.iterdir()] == [name]
    assert mine.read_text() == '{"eval_bpb": 1.0}'


def test_a_run_killed_while_it_was_made_is_made_again(tmp_path, brief_config):
    config = brief_config()
    run = Run(tmp_path / "run")
    about = loop.describe(loop.prepare(config))
    assert run.open(config, about) is False
    first = run.record()["id"]
    (tmp_path / "run" / "config.json").unlink()
    assert run.open(config, about) is False
    assert run.record()["id"] != first
    assert run.open(config, about) is True
    (tmp_path / "run" / "config.json").unlink()
    with pytest.raises(ReslabError, match="of an unknown run"):
        run.open(brief_config(seed=3), about)


@pytest.mark.conformance
def test_the_start_of_a_continued_run_is_pinned(runs, tmp_path, brief_config):
    config = brief_config(train__continue_from=str(runs[0]))

    def start(run):
        """Begins the run and kills it before its first checkpoint."""
        found = []

        def stop(step):
            raise KeyboardInterrupt

        init = loop.Setup.init
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(
                loop.Setup, "init", lambda s, f: found.append(f) or init(s, f)
            )
            loop.train(config, run, after_step=stop)
        return jax.tree.leaves(found[0]["params"])

    before = start(tmp_path / "next")
    pinned = Run(tmp_path / "next").pinned()
    assert pinned["step"] == 2 and len(pinned["sha256"]) == 64
    go_on(runs[0])
    assert not list((tmp_path / "next" / "checkpoints").glob("[0-9]*"))
    for one, other in zip(before, start(tmp_path / "next"), strict=True):
        np.testing.assert_array_equal(one, other)
    shutil.rmtree(runs[0] / "checkpoints" / "2")
    with pytest.raises(ReslabError, match="no checkpoint of step 2"):
        loop.train(config, tmp_path / "next")


@pytest.mark.conformance
def test_a_corpus_that_changed_is_refused(tmp_path, brief_config):
    corpus = tmp_path / "corpus"
    tokenize("synthetic(documents=60)", "bytes", corpus)
    config = brief_config(data__source=f"tokens(path={str(corpus)!r})")
    run = tmp_path / "run"
    loop.train(config, run)
    (run / "result.json").unlink()
    tokens = np.fromfile(corpus / "train.tokens", "<u2")
    np.random.default_rng(0).shuffle(tokens)
    tokens.tofile(corpus / "train.tokens")
    assert "the corpus changed since it was tokenized" in refused("eval", run)
    record = json.loads((corpus / "corpus.json").read_text())
    del record["files"]
    (corpus / "corpus.json").write_text(json.dumps(record))
    assert "corpus.json: files: expected what" in refused("eval", run)
    del record["tokenizer_sha256"]  # As an older version wrote it.
    (corpus / "corpus.json").write_text(json.dumps(record))
    message = "the corpus changed since the run began"
    with pytest.raises(ReslabError, match=message):
        go_on(run)
    assert message in refused("eval", run)
    (run / "run.json").unlink()  # The checkpoint knows it, too.
    assert message in refused("eval", run)


def save_tokenizer(path, order=1):
    """Words, numbered from either end: files of one size."""
    words = ["fibe", "pema", "duri", "[UNK]", "."][::order]
    model = tokenizers.models.WordLevel(
        {word: index for index, word in enumerate(words)}, unk_token="[UNK]"
    )
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(path))
    return path.stat().st_size


@pytest.mark.conformance
def test_a_tokenizer_that_changed_is_refused(tmp_path, brief_config):
    path = tmp_path / "tokenizer.json"
    size = save_tokenizer(path)
    spec = f"huggingface(path={str(path)!r})"
    config = brief_config(data__tokenizer=spec)
    run = tmp_path / "run"
    loop.train(config, run)
    (run / "result.json").unlink()
    assert save_tokenizer(path, order=-1) == size
    with pytest.raises(ReslabError, match="the tokenizer changed since the run began"):
        go_on(run)
    for command in readers(run, tmp_path / "out"):
        said = refused(*command)
        assert "the tokenizer changed since the run began" in said
    os.remove(run / "run.json")
    for command in (["eval", run], ["generate", run, "--length", "4"]):
        assert "the tokenizer changed since the run began" in refused(*command)
    save_tokenizer(path)
    assert say("generate", run, "--length", "4")[0] == 0
