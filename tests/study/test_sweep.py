"""A sweep of real runs: skipped when done, resumed when interrupted, failing alone."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from reslab.cli import main
from reslab.core import config as configs
from reslab.core.errors import ReslabError
from reslab.core.platform import available_cores, cpu_threads
from reslab.parallel.hosts import configure_cpu
from reslab.runtime.python import command
from reslab.study.comparison import at_equal_units
from reslab.study.plan import plan
from reslab.study.pool import Ended
from reslab.study.results import read_results
from reslab.study.slots import Slots
from reslab.study.sweep import cores_of, write_record

STUDY = """
from reslab.study.algebra import vary
from reslab.study.plan import Study

def get_study():
    return Study(
        question="Does the placement matter?",
        config="tiny",
        cases=vary("model.placement", "pre", "post"),
        seeds=(0,),
        baseline="placement=pre",
        overrides={
            "model.features": 16,
            "model.depth": 1,
            "model.mixer": "attention(heads=2)",
            "precision.compute": "float32",
            "data.source": "synthetic(documents=60)",
            "data.length": 16,
            "data.batch": 8,
            "optim.schedule": "constant",
            "train.steps": 600,
            "train.log_every": 20,
            "train.eval_every": 150,
            "train.checkpoint_every": 75,
            "eval.batch": 8,
            "probes.every": 0,
        },
    )
"""


@pytest.mark.parametrize(
    ("module", "told", "answer"),
    [("reslab.study.worker", "", ""), ("reslab.parallel.aot.kernels", "[]", "[]\n")],
)
def test_processes_import_what_their_parent_does_and_nothing_beside_it(
    module, told, answer, tmp_path
):
    installed = {name.partition(".")[0] for name in sys.modules}
    for name in sys.stdlib_module_names | installed - {"__main__"}:
        (tmp_path / f"{name}.py").write_text("raise ImportError('mine')")
    (tmp_path / "reslab").mkdir()
    (tmp_path / "reslab" / "__init__.py").write_text("raise ImportError('another')")
    done = subprocess.run(
        command(module, *["."] * bool(told)),
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": ""},
        input=told,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, answer), done.stderr


def test_cores_are_those_of_the_study(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.py").write_text(STUDY)
    planned = plan("small.py", out="out")
    here = len(available_cores())
    assert cores_of(planned) == here
    write_record(planned, here + 3)
    # Another machine goes on with what the study began with.
    assert cores_of(planned) == here + 3
    assert capsys.readouterr().err == ""
    other = dataclasses.replace(planned.study, cores=99)
    assert cores_of(dataclasses.replace(planned, study=other)) == 99
    said = capsys.readouterr().err
    assert f"99 cores a run, the study began with {here + 3}" in said
    assert len(said.splitlines()) == 1
    text = (tmp_path / "out" / "study.json").read_text()
    edited = text.replace(f'"cores": {here + 3}', '"cores": 1')
    assert edited != text
    for damaged in ("", "[]", '{"cores": "many"}', edited):
        (tmp_path / "out" / "study.json").write_text(damaged)
        with pytest.raises(ReslabError, match=r"study\.json"):
            cores_of(planned)


@pytest.mark.parametrize("devices, threads", [(1, "3"), (2, "8"), (4, "16")])
def test_the_threads_of_a_run_are_those_that_it_is_told(monkeypatch, devices, threads):
    monkeypatch.setenv("NPROC", "64")
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    configure_cpu(devices, 3)
    assert os.environ["NPROC"] == threads
    assert str(cpu_threads()) == threads


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "small.py").write_text(STUDY)
    return folder


@pytest.fixture(scope="module")
def environment(folder, shell):
    """What a shell would have: no fake devices; one compile cache for all."""
    return shell | {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def start(folder, environment, *options, study="small.py"):
    asked = [sys.executable, "-m", "reslab", "sweep", study, *options]
    return subprocess.Popen(
        asked,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def whole(folder, environment):
    """The unbroken sweep, two runs at a time."""
    process = start(folder, environment, "--out", "whole", "--jobs", "2")
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    assert "2 of 2 runs are finished" in out
    assert "sweep 100/100" in err
    return folder / "whole"


def steps_done(directory):
    """Steps logged so far, over all runs."""
    return sum(
        len(p.read_text().splitlines()) for p in directory.glob("*/metrics.jsonl")
    )


@pytest.mark.conformance
def test_interrupted_ends_with_the_same_table(folder, environment, whole):
    broken = folder / "broken"
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGINT):
        process = start(folder, environment, "--out", broken.name, "--jobs", "2")
        goal, deadline = steps_done(broken) + 5, time.monotonic() + 200
        while steps_done(broken) < goal and time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.send_signal(number)
        _, err = process.communicate(timeout=100)
        if number != signal.SIGKILL:
            assert process.returncode == 42, err
            assert "same command" in err
        # Trainers whose sweep was killed are still saving; the next one waits.
    assert not all((p / "result.json").exists() for p in broken.glob("????????????"))
    process = start(folder, environment, "--out", broken.name, "--jobs", "2")
    _, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    rows = [at_equal_units(read_results([path])) for path in (whole, broken)]
    assert rows[0] == rows[1]


@pytest.mark.conformance
def test_seeds_of_a_case_train_together(folder, environment):
    """One process, one program; what each says of its end is in its own log."""
    text = STUDY.replace("seeds=(0,)", "seeds=(0, 1, 2)").replace(
        '"train.steps": 600', '"train.steps": 40'
    )
    (folder / "seeds.py").write_text(text)
    tables = []
    for out, options in (("alone", ()), ("packed", ("--pack", "seeds"))):
        process = start(folder, environment, "--out", out, *options, study="seeds.py")
        said, err = process.communicate(timeout=500)
        assert process.returncode == 0, err
        assert "6 of 6 runs are finished" in said
        tables.append(read_results([folder / out]))
    for one, other in zip(*(table.runs for table in tables), strict=True):
        assert (one.case, one.seed) == (other.case, other.seed)
        np.testing.assert_allclose(one.figure, other.figure, rtol=1e-4)
    logs = [path.read_text() for path in sorted((folder / "packed/logs").iterdir())]
    assert sum("trained with seed 0" in log for log in logs) == 4
    assert sum("compiling the step" in log for log in logs) == 2


@pytest.mark.conformance
def test_what_is_done_is_skipped(whole, folder, monkeypatch, capsys):
    before = {p: p.stat().st_mtime_ns for p in whole.glob("*/*")}
    monkeypatch.chdir(folder)
    assert main(["sweep", "small.py", "--out", "whole"]) == 0
    assert "2 of 2 runs are finished" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in whole.glob("*/*")}
    record = json.loads((whole / "study.json").read_text())
    assert record["baselines"] == {
        "placement=pre": None,
        "placement=post": "placement=pre",
    }
    assert len((whole / "manifest.jsonl").read_text().splitlines()) == 2


@pytest.mark.conformance
@pytest.mark.slow
def test_a_run_that_fails_does_not_stop_the_others(folder, environment):
    """One diverges; it is named, recorded, and not tried again."""
    text = STUDY.replace(
        'vary("model.placement", "pre", "post")',
        'vary("optim.learning_rate", 1e30, 1e-3)',
    ).replace('"placement=pre"', '"learning_rate=0.001"')
    text = text.replace('"train.steps": 600', '"train.steps": 20')
    text = text.replace(
        '"probes.every": 0',
        '"probes.every": 0, "optim.clip": 0.0, "optim.name": "sgd(momentum=0.0)"',
    )
    (folder / "failing.py").write_text(text)
    asked = [
        sys.executable,
        "-m",
        "reslab",
        "sweep",
        "failing.py",
        "--out",
        "failing",
    ]
    for attempt in range(2):
        done = subprocess.run(
            asked,
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1, done.stderr
        assert "1 of 2 runs are finished" in done.stdout
        assert "failed: learning_rate=1e+30, seed 0: step" in done.stdout
        # Told while it goes on; the second time nothing is run.
        assert ("failed (failing/logs/" in done.stderr) == (attempt == 0)
    (failed,) = (folder / "failing").glob("*/failed.json")
    assert json.loads(failed.read_text())["exit_code"] == 75


@pytest.mark.conformance
def test_a_case_that_cannot_be_built_is_told_before_anything_runs(folder, environment):
    (folder / "wrong.py").write_text(STUDY.replace("heads=2", "heads=3"))
    asked = [sys.executable, "-m", "reslab", "sweep", "wrong.py", "--out", "wrong"]
    done = subprocess.run(
        asked,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "case 'placement=pre': mixers 'attention': heads" in done.stderr
    assert not (folder / "wrong").exists()


WORKER = """
import sys
{body}
from reslab.study import worker
worker.train = lambda config, directory: train()
sys.exit(worker.main())
"""


READ = """
def train():
    assert not sys.stdin.read()
"""
ASKED = """
def train():
    try:
        assert not input()
    except EOFError:
        pass
"""


@pytest.mark.parametrize("body", [READ, ASKED])
def test_a_part_that_reads_standard_input_reads_nothing(body, tmp_path):
    """The questions of the sweep are not its own."""
    config = configs.canonical_json(configs.load("tiny"))
    run = {"config": config, "directory": "x", "log": str(tmp_path / "log")}
    line = json.dumps({"allowed": [], "cores": 1, "runs": [run]}) + "\n"
    with subprocess.Popen(
        [sys.executable, "-c", WORKER.format(body=body)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        for _ in range(2):
            process.stdin.write(line)
            process.stdin.flush()
            assert process.stdout.readline() == '{"codes": [0]}\n'
        process.stdin.close()
        # Its end may come before it rests.
        assert process.wait(60) in (0, -signal.SIGTERM)


@pytest.mark.parametrize("code", [0, 1, -9])
def test_a_worker_that_ends_is_a_failed_run_and_is_replaced(code, tmp_path):
    """Whatever its exit code: a part may have called `os._exit(0)`."""
    (tmp_path / "small.py").write_text(STUDY)
    planned = plan(str(tmp_path / "small.py"), out=str(tmp_path / "out"))
    run, dismissed = planned.runs[0], []

    class Dead:
        def answer(self):
            raise Ended(code, "its last words")

    class Places:
        dismiss = dismissed.append

    slots = Slots(tmp_path / "out", 1, 1, Places(), None)
    (tmp_path / "out" / "logs").mkdir(parents=True)
    slots._log(run).write_text("")
    slots._going[0], slots._log_begins[run] = ((run,), Dead()), 0
    assert slots.reap() == [run] and dismissed == [0] and slots.free() == [0]
    failed = json.loads((tmp_path / "out" / run.directory / "failed.json").read_text())
    assert failed["exit_code"] == (code or 70)
