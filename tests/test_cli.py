"""The command line: what it prints and writes; mistakes are in test_bad_inputs."""

import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from reslab.cli import main
from reslab.core import config as configs
from reslab.core import imports
from reslab.core.errors import ReslabError
from reslab.parallel.mesh import make_mesh
from reslab.train import loop
from reslab.train.state import make_setup

SMALL = ("--config", str(pathlib.Path(__file__).with_name("small.py")))


def command(verb, *options, sets=()):
    return [verb, *options, *(part for text in sets for part in ("--set", text))]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run."""
    directory = tmp_path_factory.mktemp("runs") / "finished"
    assert main(command("train", *SMALL, "--run", str(directory))) == 0
    return directory


USE_BASE = (
    "from reslab.core.config import load\n"
    "def get_config():\n    config = load('base')\n"
)


def test_a_config_file_may_tile_specs(tmp_path):
    text = USE_BASE + "    config.model.mixer = ('gated_delta', 'attention')\n"
    (tmp_path / "mine.py").write_text(text + "    return config\n")
    config = configs.load(str(tmp_path / "mine.py"))
    assert config.model.mixer == ("gated_delta", "attention")


@pytest.mark.conformance
def test_a_model_of_few_positions_is_sampled_within_them(tmp_path, capsys):
    sets = ["model.position=learned"]
    run = str(tmp_path / "run")
    arguments = command("train", *SMALL, "--run", run, sets=sets)
    assert main(arguments) == 0
    assert "reslab list" in capsys.readouterr().out
    assert main(["generate", run, "--prompt", "ab"]) == 0


@pytest.mark.conformance
def test_training_again_only_tells_the_result(run, capsys):
    arguments = command("train", *SMALL, "--run", str(run))
    before = (run / "metrics.jsonl").read_text()
    assert main(arguments) == 0
    assert "held-out bits per byte" in capsys.readouterr().out
    assert (run / "metrics.jsonl").read_text() == before


def test_summary(run, capsys):
    main(command("train", *SMALL, "--run", str(run)))
    out = capsys.readouterr().out
    for words in ("this model", "trigram", "bigram", "unigram", "sample", "tokens/s"):
        assert words in out
    assert str(run) in out
    assert f"reslab generate {run}" in out
    assert f"report         {run}/report.html" in out
    assert "Report: " in (run / "report.html").read_text()


@pytest.mark.conformance
def test_from_run_repeats_the_run(run, tmp_path, capsys):
    again = tmp_path / "run again"
    assert main(["train", "--from-run", str(run), "--run", str(again)]) == 0
    out, err = capsys.readouterr()
    # What it is comes first, then each stage with its time.
    first = [line.split("  ")[0] for line in err.splitlines()]
    assert first[:4] == ["parameters", "devices", "data", "run directory"]
    for stage in ("compiling the step", "evaluating on all held-out data", "sampling"):
        assert f"{stage} ...\n" in err and re.search(rf"^{stage}: [\d.]+ s$", err, re.M)
    # What it proposes can be pasted.
    assert f"  reslab generate '{again}' --prompt 'def '" in out
    assert f"  reslab train --from-run {run} --set model.residual=" in out
    read = json.loads((again / "result.json").read_text())
    recorded = json.loads((run / "result.json").read_text())
    assert read["eval_bpb"] == recorded["eval_bpb"]
    assert (again / "config.json").read_text() == (run / "config.json").read_text()


@pytest.mark.conformance
def test_a_continued_run_tells_both_losses(run, tmp_path, capsys):
    directory = tmp_path / "next"
    where = ("--continue-from", str(run), "--run", str(directory))
    assert main(command("train", *SMALL, *where)) == 0
    out = capsys.readouterr().out
    # The next one begins from the same parameters, too.
    again = f"  reslab train --continue-from {run} --config "
    assert f"{again}{SMALL[1]} --set optim.learning_rate=" in out
    for name, folder in (("this model", directory), ("continued from", run)):
        told = float(re.search(rf"{name} +([\d.]+)", out).group(1))
        result = json.loads((folder / "result.json").read_text())
        assert told == pytest.approx(result["eval_bpb"], abs=1e-3)


def test_eval_equals_the_result(run, capsys):
    assert main(["eval", str(run)]) == 0
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines())
    recorded = json.loads((run / "result.json").read_text())
    assert float(printed["eval_bpb"]) == pytest.approx(recorded["eval_bpb"], rel=1e-5)


def test_eval_on_text_of_ones_own(run, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("lo and behold\n" * 40)
    path = str(tmp_path / "mine.txt")

    def evaluated(text):
        assert main(["eval", str(run), "--text", text]) == 0
        first, *rest = capsys.readouterr().out.splitlines()
        assert first == f"text {text}"
        return dict(line.split() for line in rest)

    found = evaluated(path)
    assert float(found["eval_tokens"]) == 40 * 14 and float(found["eval_bpb"]) > 0
    assert evaluated(f"text(path={path!r})") == found
    for text, message in (
        (str(tmp_path / "none.txt"), "does not exist"),
        ("txet(path='a')", "unknown sources 'txet'"),
    ):
        assert main(["eval", str(run), "--text", text]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert message in line


@pytest.mark.conformance
def test_eval_along_a_path_of_layers(run, capsys):
    def evaluated(*options):
        assert main(["eval", str(run), *options]) == 0
        return capsys.readouterr().out

    whole = evaluated()
    same = evaluated("--stack", "path(layers=(0, 1))")
    assert same == "stack path(layers=(0, 1))\n" + whole
    assert not evaluated("--stack", "path(layers=(1, 0, 0))").endswith(whole)
    for spec, message in (
        ("path(layers=(0, 2))", "expected numbers of layers, from 0 to 1; got 2"),
        ("paht", "unknown stacks 'paht': try: 'path'"),
        ("lab.stack", "no module named 'lab'"),
    ):
        assert main(["eval", str(run), "--stack", spec]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert message in line


def test_generate_is_seeded(run, capsys):
    def sample(*options):
        assert main(["generate", str(run), "--length", "20", *options]) == 0
        return capsys.readouterr().out

    prompt = ("--prompt", "def ")
    assert sample(*prompt).startswith("def ")
    assert sample(*prompt) == sample(*prompt)
    assert sample(*prompt, "--seed", "1") != sample(*prompt)
    greedy = sample(*prompt, "--temperature", "0")
    assert greedy == sample(*prompt, "--top-k", "1")
    assert sample("--samples", "2").count("---") == 1


def test_list_and_show(capsys):
    assert main(["list"]) == 0
    assert "hyper" in capsys.readouterr().out
    assert main(["list", "norms"]) == 0
    listed = capsys.readouterr().out
    assert "rms" in listed and "arxiv.org/abs/1910.07467" in listed
    assert main(["show", "norms/rms", "--width", "64"]) == 0
    shown = capsys.readouterr().out
    assert "gain  (64,)" in shown and "epsilon = 1e-06" in shown
    assert main(["show", "residuals/delta_attnres"]) == 0
    # Attributes that its docstring leaves to a base.
    assert "block_layers: Layers in a block" in capsys.readouterr().out
    assert main(["show", "tiny"]) == 0
    shown = capsys.readouterr().out
    for words in (
        *("model.depth = 4", "FLOPs per token", "optimizer state", "decay"),
        "while it is generated: ",
    ):
        assert words in shown
    assert main(["doctor"]) == 0
    assert "jaxlib" in capsys.readouterr().out


def test_a_change_of_a_field_needs_no_set(capsys):
    assert main(["show", "configs/tiny.py", "model.depth=2", "seed=7"]) == 0
    bare = capsys.readouterr().out
    with_set = ["--set", "model.depth=2", "--set", "seed=7"]
    assert main(["show", "configs/tiny.py", *with_set]) == 0
    assert capsys.readouterr().out == bare
    for arguments in (["doctor", "seed=2"], ["train", "--config", "tiny", "tiny"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        (line,) = capsys.readouterr().err.splitlines()
        assert caught.value.code == 2 and "unrecognized" in line


@pytest.mark.conformance
def test_a_variant_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "my_norms.py").write_text(
        "import flax.linen as nn\n"
        "class Half(nn.Module):\n"
        "    factor: float = 0.5\n"
        "    def __call__(self, x):\n"
        "        return self.factor * x\n"
        "build = Half\n"
    )
    (tmp_path / "own_lab").mkdir()
    (tmp_path / "own_lab" / "__init__.py").write_text("")
    (tmp_path / "my_norms.py").rename(tmp_path / "own_lab" / "half.py")
    monkeypatch.chdir(tmp_path)
    sets = ["model.norm=own_lab.half(factor=0.25)", "train.steps=3"]
    sets += ["optim.groups=()"]
    assert main(command("train", *SMALL, "--run", "run", sets=sets)) == 0


@pytest.mark.conformance
def test_a_loss_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "loss_lab").mkdir()
    (tmp_path / "loss_lab" / "__init__.py").write_text("")
    (tmp_path / "loss_lab" / "zero.py").write_text(
        "from reslab.train.tasks.language import Language\n"
        "class Zero(Language):\n"
        "    def loss_sums(self, *arguments, **keywords):\n"
        "        total, *rest = super().loss_sums(*arguments, **keywords)\n"
        "        return 0 * total, *rest\n"
        "build = Zero\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    imports.allow("loss_lab")
    config = configs.load("tiny")
    small = [("model.features", 16), ("model.mixer", "attention(heads=2)")]
    small += [("data.batch", 2), ("train.task", "loss_lab.zero"), ("model.depth", 1)]
    configs.check(configs.update(config, small))
    setup = make_setup(config, make_mesh({}, jax.devices()[:1]))
    shapes = setup.task.batch_shapes(2)
    batch = {key: np.ones(leaf.shape, leaf.dtype) for key, leaf in shapes.items()}
    variables = setup.init().variables
    total, sums, _ = setup.task.loss_sums(setup.model, variables, batch)
    assert total == 0 and sums["nll"] > 0
    with pytest.raises(ReslabError, match="unknown tasks 'langage': try: 'language'"):
        configs.update(config, [("train.task", "langage")])
        configs.check(config)


@pytest.mark.parametrize("verb", ["train", "eval", "generate", "list", "show"])
def test_help(verb, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([verb, "--help"])
    assert stopped.value.code == 0
    assert "usage" in capsys.readouterr().out


def test_a_closed_pipe_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)  # Gone before the first word, however little is printed.
    done = subprocess.run(
        [sys.executable, "-m", "reslab", "list", "norms"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert done.returncode == 0
    assert not done.stderr


def test_a_working_directory_that_is_gone_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["list"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the working directory: got No such file" in line


@pytest.mark.conformance
def test_commands_need_no_docstrings():
    for arguments in (["list"], ["show", "norms/rms"], ["train", "--help"]):
        done = subprocess.run(
            [sys.executable, "-OO", "-m", "reslab", *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout


def test_stopped_runs_have_their_own_exit_code(tmp_path, monkeypatch, capsys):
    def stop(*_, **__):
        raise loop.Stopped(3)

    monkeypatch.setattr(loop, "train", stop)
    arguments = command("train", *SMALL, "--run", str(tmp_path / "r"))
    assert main(arguments) == 42
    assert "saved at step 3" in capsys.readouterr().err


@pytest.mark.conformance
def test_a_converted_run_is_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sets = ("model.norm=layer",)
    assert main(command("train", *SMALL, "--run", "one", sets=sets)) == 0
    assert main(["transform", "pre_ln_to_pre_rms", "one", "--out", "two"]) == 0
    out, _ = capsys.readouterr()
    assert "model.norm = 'rms" in out
    assert "largest logit difference" in out
    assert main(["eval", "two"]) == 0
    assert main(["transform", "pre_ln_to_pre_rms", "two", "--out", "three"]) == 2
    _, err = capsys.readouterr()
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "three").exists()


@pytest.mark.parametrize("verb", ["sweep", "train"])
def test_an_interrupt_is_one_line(verb, monkeypatch, capsys):
    def interrupt(*arguments, **keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr("reslab.study.stages.plan", interrupt)
    monkeypatch.setattr(loop, "train", interrupt)
    arguments = {"sweep": ("study.py",), "train": (*SMALL, "--run", "run")}
    assert main([verb, *arguments[verb]]) == 130
    assert capsys.readouterr().err == f"reslab {verb}: interrupted\n"
