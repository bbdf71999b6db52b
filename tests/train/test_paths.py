"""The search for paths: what it finds, that it goes on, and what it refuses."""

import json

import numpy as np
import pytest

from reslab.cli import main
from reslab.train import loop
from reslab.train.paths import tree
from tests.small import get_config

FULL = tuple(range(6))


def found(evaluate, simulations=200, seed=0):
    return tree.search(6, evaluate, simulations, np.random.default_rng(seed))


def test_solves_what_a_repeated_layer_solves():
    one = found(lambda path: float(path.count(3) == 2))
    assert one.base == 0 and one.score == 1 and one.path.count(3) == 2
    assert one.simulations < 200


def test_saves_two_layers_and_ends():
    one = found(lambda path: float({0, 1, 4, 5} <= set(path)))
    assert one.score == one.base == 1
    assert one.path == (0, 1, 4, 5)


def test_never_ends_below_the_model():
    one = found(lambda path: float(path == FULL), 30)
    assert one == tree.Found(FULL, 1.0, 1.0, 30)
    assert found(lambda path: 0.0, 20).path == FULL
    # Equal scores: the shortest.
    assert len(found(lambda path: 0.5 * (len(path) >= 5), 100).path) == 5


def test_looks_at_each_path_once_and_applies_no_layer_thrice():
    seen = []

    def evaluate(path):
        seen.append(path)
        return 0.5 if path == (0, 1) else 0.0

    tree.search(2, evaluate, 1000, np.random.default_rng(1))
    assert len(seen) == len(set(seen))
    assert set(seen) == {(0, 1), (0, 0, 1), (0, 1, 1), (0, 0, 1, 1), (0,), (1,)} | {
        (0, 0),
        (1, 1),
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "run"
    loop.train(get_config(), directory)
    return directory


def search(run, *options):
    return main(["search", "paths", str(run), "--samples", "3", *options])


def test_searches_a_run_and_goes_on(run, tmp_path, capsys, monkeypatch):
    file = tmp_path / "paths.jsonl"
    options = ("--simulations", "6", "--prompt", "4", "--out", str(file))
    assert search(run, *options) == 0
    out, err = capsys.readouterr()
    assert "layers applied" in out and str(file) in out
    assert "search 3/3" in err
    whole = file.read_text()
    about, *lines = map(json.loads, whole.splitlines())
    assert about["depth"] == 2 and len(lines) == 3
    for line in lines:
        assert line["score"] >= line["base"] > 0
    # Ended after one sample, it goes on to the same end.
    file.write_text("".join(whole.splitlines(keepends=True)[:2]))
    assert search(run, *options) == 0
    assert file.read_text() == whole
    assert search(run, *options, "--seed", "1") == 2
    assert "another search, whose seed is 0" in capsys.readouterr().err
    (tmp_path / "lab.py").write_text("")
    (tmp_path / "lab2").mkdir()
    (tmp_path / "lab2" / "flat.py").write_text(
        "def score(logits, batch):\n    return logits[:, 0, 0] * 0 + 0.25\n"
    )
    monkeypatch.chdir(tmp_path)
    mine = ("--simulations", "2", "--together", "--score", "lab2.flat", "--out", "m")
    assert search(run, *mine) == 0
    assert "reslab eval" in capsys.readouterr().out
    assert json.loads((tmp_path / "m").read_text().splitlines()[1])["base"] == 0.25


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--simulations", "0"), "--simulations: expected at least 1"),
        (("--samples", "100000"), "samples: expected at most"),
        (("--prompt", "16"), "prompt: expected one after which tokens are scored"),
        (("--score", "corect"), "unknown score 'corect'"),
        (("--score", "no.such"), "no module named 'no'"),
        (("--out", "notes.txt"), "expected a file that `reslab search paths`"),
    ],
)
def test_refuses_in_one_line(run, options, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    try:
        code = search(run, *options)
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not (run / "paths.jsonl").exists()
