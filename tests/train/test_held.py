"""Record or data of a run change while it trains: it ends at the next save."""

import json
import os
import shutil

import numpy as np
import pytest

from reslab.core.errors import ReslabError
from reslab.data.tokenized import tokenize
from reslab.runtime.storage import StorageFailed
from reslab.train import loop
from reslab.train.ending import end
from reslab.train.run import Run

SMALL = {"model__depth": 1, "model__features": 16, "mesh__cpu_devices": 8}


FILES = ("config.json", "run.json", "lock")


def after(step, change):
    """Makes a change after a step; saves are at steps 4, 8 and 12."""

    def happen(now):
        if now == step:
            change()

    return happen


def saved(run):
    return sorted(int(path.name) for path in (run / "checkpoints").glob("[0-9]*"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, small_config):
    """A run on stored tokens, and its corpus."""
    folder = tmp_path_factory.mktemp("whole")
    tokenize("synthetic(documents=60)", "bytes", folder / "corpus")
    source = f"tokens(path={str(folder / 'corpus')!r})"
    loop.train(small_config(**SMALL, data__source=source), folder / "run")
    return folder


@pytest.fixture
def corpus(whole, tmp_path):
    return shutil.copytree(whole / "corpus", tmp_path / "corpus")


def shuffle(path):
    content = path.read_bytes()
    begin = len(content) // 2  # Of the starts, their header stays.
    bytes_ = np.frombuffer(content[begin:], np.uint8)
    with open(path, "r+b") as file:
        file.seek(begin)
        file.write(np.random.default_rng(0).permutation(bytes_).tobytes())


def shuffle_unseen(path):
    """Sets size and time of modification back; that of the change cannot be."""
    before = os.stat(path)
    shuffle(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(path):
    other = path.with_name("other")
    shutil.copy2(path, other)
    shuffle_unseen(other)
    os.replace(other, path)


CHANGES = {
    "overwritten": shuffle,
    "overwritten unseen": shuffle_unseen,
    "replaced": replace,
    "cut": lambda path: os.truncate(path, os.path.getsize(path) - 2),
    "deleted": os.unlink,
}


def rare(*values):
    return pytest.param(*values, marks=pytest.mark.exhaustive)


@pytest.mark.conformance
@pytest.mark.parametrize(
    ("kind", "file"),
    [
        ("overwritten unseen", "train.tokens"),
        ("replaced", "train.tokens"),
        ("overwritten", "train.starts.npy"),
        rare("overwritten", "train.tokens"),
        rare("cut", "train.tokens"),
        rare("deleted", "train.tokens"),
        rare("overwritten", "validation.tokens"),
    ],
)
def test_a_corpus_that_changes_ends_the_run_at_its_next_save(
    kind, file, corpus, whole, tmp_path, small_config, capsys
):
    config = small_config(**SMALL, data__source=f"tokens(path={str(corpus)!r})")
    run, path = tmp_path / "run", corpus / file
    change = after(5, lambda: CHANGES[kind](path))
    with pytest.raises(ReslabError, match=file) as caught:
        loop.train(config, run, after_step=change)
    assert end(caught.value) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "the corpus" in told and "the same command resumes" in told
    assert saved(run) == [4] and not (run / "result.json").exists()
    if kind == "cut":  # Read beyond its end, or noticed by the save.
        return
    with pytest.raises(ReslabError):
        loop.train(config, run)
    shutil.copy(whole / "corpus" / file, path)
    result = loop.train(config, run)
    unbroken = json.loads((whole / "run" / "result.json").read_text())
    assert result["eval_bpb"] == unbroken["eval_bpb"]


@pytest.mark.conformance
def test_a_part_of_a_mixture_and_replayed_text_are_held(corpus, tmp_path, small_config):
    stored = f"tokens(path={str(corpus)!r})"
    loop.train(small_config(**SMALL, data__source=stored), tmp_path / "before")
    changes = {
        "mixture": {
            "data__source": f"mixture(sources=('synthetic(documents=40)', {stored!r}))"
        },
        "replay": {
            "data__source": "synthetic(documents=40)",
            "data__replay": 0.5,
            "train__continue_from": str(tmp_path / "before"),
        },
    }
    for name, fields in changes.items():
        path = corpus / "train.tokens"
        content = path.read_bytes()
        with pytest.raises(ReslabError, match="the corpus changed since the run began"):
            loop.train(
                small_config(**SMALL, **fields),
                tmp_path / name,
                after_step=after(5, lambda path=path: shuffle(path)),
            )
        assert saved(tmp_path / name) == [4]
        path.write_bytes(content)


@pytest.mark.conformance
def test_files_that_are_only_touched_are_the_same(corpus, tmp_path, small_config):
    config = small_config(**SMALL, data__source=f"tokens(path={str(corpus)!r})")

    def touch():
        for path in corpus.iterdir():
            path.touch()

    assert (
        loop.train(config, tmp_path / "run", after_step=after(5, touch))["step"] == 12
    )


def into_another_directory(run):
    """The directory is replaced, and the checkpoints are moved into the new one."""
    run.rename(run.with_name("gone"))
    run.mkdir()
    (run.with_name("gone") / "checkpoints").rename(run / "checkpoints")


def rewrite(name, old, new):
    def change(run):
        text = (run / name).read_text()
        assert old in text
        (run / name).write_text(text.replace(old, new, 1))

    return change


TAKEN = {
    "config.json": lambda run: (run / "config.json").unlink(),
    "run.json": lambda run: (run / "run.json").unlink(),
    "lock": lambda run: (run / "lock").unlink(),
    "another config": rewrite("config.json", '"seed": 0', '"seed": 1'),
    "another record": rewrite("run.json", '"id": "', '"id": "x'),
    "another's lock": lambda run: (run / "lock").write_text("1"),
    "all but the checkpoints": into_another_directory,
}


OFTEN = ("config.json", "run.json", "all but the checkpoints")


@pytest.mark.conformance
@pytest.mark.parametrize("kind", [*OFTEN, *(rare(k) for k in TAKEN if k not in OFTEN)])
def test_a_run_without_its_record_ends_at_its_next_save(
    kind, tmp_path, small_config, capsys
):
    config, run = small_config(**SMALL), tmp_path / "run"
    kept = {}

    def change():
        kept.update({name: (run / name).read_bytes() for name in FILES})
        TAKEN[kind](run)

    with pytest.raises(
        StorageFailed, match=r"was (deleted|renamed).*what was saved"
    ) as e:
        loop.train(config, run, after_step=after(5, change))
    assert end(e.value) == 70
    assert len(capsys.readouterr().err.splitlines()[-1:]) == 1
    assert saved(run) == [4] and not (run / "result.json").exists()
    for name, content in kept.items():
        (run / name).write_bytes(content)
    if kind == "all but the checkpoints":
        (run.with_name("gone") / "metrics.jsonl").rename(run / "metrics.jsonl")
    assert loop.train(config, run)["step"] == 12
    assert saved(run) == [4, 8, 12] and Run(run).result()
