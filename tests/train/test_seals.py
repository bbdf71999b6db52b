"""A run that has ended is read with the files that it ended with, and no others."""

import contextlib
import io
import json
import os
import shutil

import pytest

from reslab.cli import main
from reslab.core.errors import ReslabError
from reslab.study.results import read_results
from reslab.study.sweep import _is_settled
from reslab.train import loop
from reslab.train.run import Run


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained / "0", tmp_path / "run")


def refused(*command):
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = main([str(word) for word in command])
    assert code == 2 and len(said.getvalue().splitlines()) == 1, said.getvalue()
    return said.getvalue()


def change(run, **fields):
    """Changes fields of run.json; None removes one."""
    record = json.loads((run / "run.json").read_text()) | fields
    record = {key: value for key, value in record.items() if value is not None}
    (run / "run.json").write_text(json.dumps(record))


def test_what_has_ended_is_sealed(trained, run):
    ended = Run(run).record()["ended"]
    assert ended.keys() == {"result.json", "metrics.jsonl", "probes.jsonl"}
    assert Run(run).result() == json.loads((run / "result.json").read_text())
    assert loop.train(Run(run).config(), run) == Run(run).result()
    assert Run(run).record()["ended"] == ended
    assert _is_settled(run, is_retrying=False)
    assert read_results([run]).runs[0].is_finished


@pytest.mark.parametrize("name", ["result.json", "metrics.jsonl"])
def test_another_runs_files_are_refused_by_every_reader(name, trained, run, tmp_path):
    shutil.copy(trained / "1" / name, run / name)
    out = tmp_path / "out"
    for command in (
        ["train", "--from-run", run, "--run", run],
        ["report", run],
        ["show", run],
        ["inspect", run, "--probe", "stream"],
        ["train", "--from-run", run, "--run", out, "--continue-from", run],
    ):
        assert f"{name} was changed since the run ended" in refused(*command)
    with pytest.raises(ReslabError, match="was changed since the run ended"):
        _is_settled(run, is_retrying=False)
    assert not out.exists()


@pytest.mark.parametrize("name", ["metrics.jsonl", "probes.jsonl"])
def test_a_file_that_is_gone_is_missed(name, run):
    (run / name).unlink()
    with pytest.raises(ReslabError, match=rf"{name} was changed .* no such file"):
        Run(run).result()


@pytest.mark.parametrize("text", ["{}", '{"eval_bpb": 0.1}', '{"step": 3}'])
def test_a_result_of_another_step_is_none(text, run):
    change(run, ended=None)  # As older versions ended a run.
    assert Run(run).result()["step"] == 4
    (run / "result.json").write_text(text)
    with pytest.raises(ReslabError, match=r"result.json: step: expected 4, the last"):
        Run(run).result()


def test_a_run_under_way_has_no_result(trained, run):
    change(run, ended={})
    with pytest.raises(ReslabError, match="the run has not ended"):
        Run(run).result()


def test_a_kill_between_seal_and_result_is_no_end(run, monkeypatch):
    os.remove(run / "result.json")
    change(run, ended={})
    write = Run.write

    def killed(self, name, content):
        if name == "result.json":
            raise KeyboardInterrupt
        write(self, name, content)

    config = Run(run).config()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "write", killed)
        loop.train(config, run)
    assert Run(run).record()["ended"] and Run(run).result() is None
    assert loop.train(config, run) == Run(run).result()


def test_numbers_that_no_run_has_are_refused(run):
    change(run, ended=None)
    path = run / "metrics.jsonl"
    whole = path.read_text()
    row = json.loads(whole.splitlines()[-1])
    for value in ("1e308", "-1e308", "1" + "0" * 400, "NaN", "Infinity"):
        last = json.dumps(row | {"step_seconds": 0}).replace(
            '"step_seconds": 0', f'"step_seconds": {value}'
        )
        path.write_text(whole + last + "\n")
        assert "metrics.jsonl: step_seconds: expected a number" in refused(
            "report", run
        )
