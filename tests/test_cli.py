"""The command line: what it prints, and that mistakes cost one line and exit 2."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from reslab.cli import main
from reslab.core import config as configs
from reslab.train import loop
from reslab.train.run import Run

SMALL = (
    "model.features=32",
    "model.depth=2",
    "model.mixer=attention(heads=2)",
    "precision.compute=float32",
    "data.source=synthetic(documents=60)",
    "data.length=16",
    "data.batch=8",
    "optim.schedule=cosine(warmup=2)",
    "train.steps=4",
    "train.checkpoint_every=2",
    "eval.batch=8",
    "probes.every=0",
)


def command(verb, *options, sets=()):
    flags = [part for text in (*SMALL, *sets) for part in ("--set", text)]
    return [verb, *options, *flags]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run."""
    directory = tmp_path_factory.mktemp("runs") / "finished"
    assert main(command("train", "--config", "tiny", "--run", str(directory))) == 0
    return directory


@pytest.fixture
def refused(capsys, tmp_path, monkeypatch):
    """Checks that a command line is refused in one line, with nothing written."""
    monkeypatch.chdir(tmp_path)

    def check(arguments, *expected):
        before = sorted(tmp_path.rglob("*"))
        assert main(arguments) == 2
        out, err = capsys.readouterr()
        assert len(err.splitlines()) == 1, err
        assert "Traceback" not in out + err
        for words in expected:
            assert words in err
        assert sorted(tmp_path.rglob("*")) == before

    return check


MISTAKES = {
    "unknown field": (["model.dpth=3"], "unknown field 'model.dpth'", "model.depth"),
    "unknown group": (["modle.depth=3"], "unknown field 'modle.depth'"),
    "not a field": (["model=3"], "'model' is a group of fields"),
    "no value": (["model.depth"], "expected field=value"),
    "float for int": (["model.depth=1.5"], "model.depth: expected int; got 1.5"),
    "text for int": (["model.depth=four"], "model.depth: expected int; got 'four'"),
    "bool for int": (["model.depth=True"], "model.depth: expected int"),
    "text for bool": (["model.tie_embeddings=maybe"], "expected bool"),
    "infinite float": (["optim.clip=1e999"], "optim.clip: expected float"),
    "int for spec": (["model.norm=3"], "model.norm: expected str"),
    "ints for specs": (["model.mixer=(1,2)"], "model.mixer: expected spec strings"),
    "unknown variant": (["model.norm=rsm"], "unknown norms 'rsm'", "'rms'"),
    "unknown module": (["model.norm=no.such.norm"], "no module named 'no'"),
    "unknown argument": (["model.norm=rms(eps=1)"], "no argument 'eps'", "epsilon"),
    "wrong argument": (["model.residual=hyper(streams=2.5)"], "streams: expected int"),
    "bad argument": (["model.residual=hyper(streams=0)"], "expected at least 1"),
    "bad loops": (["model.stack=looped(loops=0)"], "loops: expected at least 1"),
    "malformed spec": (["model.norm=rms("], "malformed spec"),
    "positional spec": (["model.residual=hyper(4)"], "malformed spec"),
    "expression in spec": (["model.norm=rms(epsilon=2**3)"], "malformed spec"),
    "heads": (["model.mixer=attention(heads=3)"], "a divisor of the width (32)"),
    "kv heads": (["model.mixer=attention(heads=4,kv_heads=3)"], "a divisor of heads"),
    "delta heads": (["model.mixer=gated_delta(heads=5)"], "3/4 of the width"),
    "value residual": (
        ["model.mixer=attention(heads=2,value_path='value_residual(form=1)')"],
        "value_residual': form: expected str",
    ),
    "odd rope": (["model.mixer=attention(heads=2,head_dim=5)"], "head_dim"),
    "alpha": (["model.placement=mix_ln(alpha=1.5)"], "alpha: expected between 0 and 1"),
    "activation": (["model.norm=evonorm_s0"], "contains the activation"),
    "groups": (["model.norm=group(groups=5)"], "groups"),
    "norm inside": (
        ["model.placement=hybrid", "model.mixer=gated_delta(heads=2)"],
        "puts a norm inside the mixer",
    ),
    "depth": (["model.depth=0"], "model.depth: expected at least 1"),
    "remat": (["model.remat=some"], "model.remat: unknown choice 'some'"),
    "layers": (["model.layers=scna"], "try: 'scan'"),
    "precision": (["precision.compute=float16"], "precision.compute"),
    "batch": (["data.batch=12"], "data.batch: expected a multiple of the 8 devices"),
    "eval batch": (["eval.batch=12"], "eval.batch: expected a multiple"),
    "accumulate": (["train.accumulate=3"], "train.accumulate: expected a divisor"),
    "length": (["data.length=100000000"], "corpus"),
    "missing text": (["data.source=text(path='no.txt')"], "no.txt"),
    "mesh": (["mesh.data=3"], "multiply to the 8 devices", "data=3"),
    "mesh zero": (["mesh.fsdp=0"], "multiply to the 8 devices"),
    "undivided parameter": (
        ["mesh.data=1", "mesh.tensor=8"],
        "mesh axis tensor=8",
    ),
    "group": (["optim.groups=(('nothing$', {}),)"], "matches no parameter"),
    "group option": (["optim.groups=(('.', {'rate': 1}),)"], "unknown option 'rate'"),
    "group value": (["optim.groups=(('.', {'freeze': 1}),)"], "freeze: expected bool"),
    "group pattern": (["optim.groups=(('(', {}),)"], "a regular expression"),
    "group form": (["optim.groups=('x',)"], "pairs (pattern, {option: value})"),
    "optimizer": (["optim.name=adam"], "unknown optimizers 'adam'"),
    "schedule": (["optim.schedule=cosine(warmup=9)"], "schedule: warmup"),
    "decay": (["optim.schedule=wsd(decay=2.0)"], "'wsd': decay"),
    "source": (["data.source=stdlb"], "try: 'stdlib'"),
    "writer": (["train.writers=('tensorbord',)"], "try: 'tensorboard'"),
    "seed": (["seed=-1"], "seed: expected at least 0"),
    "large seed": (["seed=99999999999"], "seed: expected below 2**32"),
    "no evaluation": (["eval.batches=0"], "eval.batches: expected at least 1"),
    "no checkpoints": (["train.keep_checkpoints=0"], "expected at least 1"),
    "negative clip": (["optim.clip=-1"], "optim.clip: expected at least 0"),
    "negative chunks": (["model.vocabulary_chunks=-1"], "expected at least 0"),
    "no heads": (["model.mixer=gated_delta(heads=0)"], "expected positive heads"),
    "negative head": (["model.mixer=gated_delta(head_dim=-1)"], "positive heads"),
    "negative hidden": (["model.ffn=swiglu(hidden=-5)"], "hidden: expected at least 0"),
    "reserved dtype": (["model.norm=rms(param_dtype='x')"], "is not set in a spec"),
    "reserved decay": (["optim.name=adamw(weight_decay=0.5)"], "weight_decay is not"),
    "int for a spec": (["model.mixer=attention(position=3)"], "position: expected str"),
    "float64": (["precision.compute=float64"], "float64 is switched off"),
    "shadowed group": (
        ["optim.groups=(('kernel', {}), ('query', {}), ('.', {}))"],
        "'query' decides for no parameter",
    ),
    "short validation": (["data.source=text(path='short.txt')", "data.length=64"], ""),
    "missing writer": (["train.writers=('wandb',)"], "reslab[track]"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_the_config(mistake, refused, tmp_path, monkeypatch):
    (tmp_path / "short.txt").write_text("a short text " * 40)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "wandb" else find(n, *a)
    )
    sets, *expected = MISTAKES[mistake]
    refused(command("train", "--config", "tiny", "--run", "run", sets=sets), *expected)


USE_BASE = (
    "from reslab.core.config import load\n"
    "def get_config():\n    config = load('base')\n"
)


def test_a_config_file_may_tile_specs(tmp_path):
    text = USE_BASE + "    config.model.mixer = ('gated_delta', 'attention')\n"
    (tmp_path / "mine.py").write_text(text + "    return config\n")
    config = configs.load(str(tmp_path / "mine.py"))
    assert config.model.mixer == ("gated_delta", "attention")


@pytest.mark.parametrize(
    "text, expected",
    [
        ("def get_config(:\n", "syntax error in line 1"),
        ("x = 1\n", "a function get_config()"),
        ("def get_config():\n    return 3\n", "a ConfigDict"),
        ("def get_config():\n    return 1 / 0\n", "line 2: got ZeroDivisionError"),
        (USE_BASE + "    config.train.stpes = 7\n    return config\n", "train.stpes"),
        (USE_BASE + "    config.model.depth = 1.5\n    return config\n", "depth"),
    ],
)
def test_config_files_that_cannot_be_used(text, expected, refused, tmp_path):
    (tmp_path / "mine.py").write_text(text)
    refused(["train", "--config", "mine.py", "--run", "run"], expected)


def test_config_that_does_not_exist(refused):
    refused(["train", "--config", "tinny"], "no config 'tinny'", "'tiny'")
    refused(["train", "--config", "no/such/tiny.py"], "no config 'no/such/tiny.py'")


@pytest.mark.parametrize(
    "content, expected",
    [
        (b"", "expected"),
        (b"\x00\x01\x02", "is binary"),
        (b"\xff\xfe\xff", "is not UTF-8"),
    ],
)
def test_text_that_cannot_be_used(content, expected, refused, tmp_path):
    (tmp_path / "corpus.txt").write_bytes(content)
    sets = ["data.source=text(path='corpus.txt')"]
    arguments = command("train", "--config", "tiny", "--run", "run", sets=sets)
    refused(arguments, "corpus.txt", expected)


def test_another_config_in_the_run_directory(run, refused):
    arguments = command("train", "--config", "tiny", "--run", str(run), sets=["seed=7"])
    refused(arguments, "holds another config", "different seed")


def test_a_corpus_that_changed(refused, tmp_path, capsys):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("a man a plan a canal " * 200)
    sets = ["data.source=text(path='corpus.txt')"]
    arguments = command("train", "--config", "tiny", "--run", "run", sets=sets)
    assert main(arguments) == 0
    capsys.readouterr()
    (tmp_path / "run" / "result.json").unlink()
    corpus.write_text("a man a plan a canoe " * 200)
    refused(arguments, "the corpus changed since the run began")
    refused(["eval", "run"], "the corpus changed since the run began")


def test_a_run_directory_that_cannot_be_made(refused, tmp_path):
    (tmp_path / "file").write_text("")
    arguments = command("train", "--config", "tiny", "--run", "file/run")
    refused(arguments, "expected a directory that can be written")


def test_a_recorded_config_with_an_unknown_field(run, refused, tmp_path):
    fields = json.loads((run / "config.json").read_text())
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text(json.dumps(fields | {"extra": 1}))
    refused(["train", "--from-run", "old"], "unknown field 'extra'")
    del fields["seed"]
    (tmp_path / "old" / "config.json").write_text(json.dumps(fields))
    refused(["train", "--from-run", "old"], "has no field 'seed'")
    (tmp_path / "old" / "config.json").write_text("{")
    refused(["train", "--from-run", "old"], "not JSON")
    (tmp_path / "old" / "config.json").write_text("[]")
    refused(["train", "--from-run", "old"], "expected an object")


def test_a_recorded_config_that_was_edited(run, refused, tmp_path):
    shutil.copytree(run, tmp_path / "edited")
    path = tmp_path / "edited" / "config.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    refused(["eval", "edited"], "was changed since the run began")


def test_a_run_directory_in_use(refused, tmp_path, capsys):
    arguments = command("train", "--config", "tiny", "--run", "run")
    assert main(arguments) == 0
    (tmp_path / "run" / "result.json").unlink()
    capsys.readouterr()
    with Run(tmp_path / "run").lock():
        refused(arguments, "run is in use: got process", str(os.getpid()))


def test_a_model_of_few_positions_is_sampled_within_them(tmp_path, capsys):
    sets = ["model.position=learned"]
    run = str(tmp_path / "run")
    arguments = command("train", "--config", "tiny", "--run", run, sets=sets)
    assert main(arguments) == 0
    assert "reslab list" in capsys.readouterr().out
    assert main(["generate", run, "--prompt", "ab"]) == 0


def test_commands_on_what_is_no_run(run, refused, tmp_path):
    refused(["eval", "nothing"], "expected a run directory")
    (tmp_path / "empty").mkdir()
    refused(["generate", "empty"], "expected a run directory")
    refused(["train", "--from-run", "nothing"], "expected a run directory")
    (tmp_path / "young").mkdir()
    (tmp_path / "young" / "config.json").write_text((run / "config.json").read_text())
    refused(["generate", "young"], "no checkpoint")
    refused(["eval", "young"], "no checkpoint")


@pytest.mark.parametrize(
    "options, expected",
    [
        (["--prompt", ""], "--prompt: expected at least one token"),
        (["--length", "0"], "length: expected at least 1"),
        (["--temperature", "-1"], "temperature: expected at least 0"),
        (["--top-k", "-1"], "top_k: expected at least 0"),
        (["--top-p", "0"], "top_p: expected above 0"),
        (["--samples", "0"], "--samples: expected at least 1"),
    ],
)
def test_mistakes_in_sampling(options, expected, run, refused):
    refused(["generate", str(run), *options], expected)


def test_a_checkpoint_of_another_structure(run, refused, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    config = configs.from_json((run / "config.json").read_text(), "config")
    configs.update(config, [("model.features", 64)])
    (other / "config.json").write_text(configs.canonical_json(config))
    (other / "checkpoints").symlink_to(run / "checkpoints")
    refused(["generate", str(other)], "embedding", "(264, 32)", "(264, 64)")


def test_training_again_only_tells_the_result(run, capsys):
    arguments = command("train", "--config", "tiny", "--run", str(run))
    before = (run / "metrics.jsonl").read_text()
    assert main(arguments) == 0
    assert "held-out bits per byte" in capsys.readouterr().out
    assert (run / "metrics.jsonl").read_text() == before


def test_summary(run, capsys):
    main(command("train", "--config", "tiny", "--run", str(run)))
    out = capsys.readouterr().out
    for words in ("this model", "trigram", "bigram", "unigram", "sample", "tokens/s"):
        assert words in out
    assert str(run) in out
    assert f"reslab generate {run}" in out


def test_from_run_repeats_the_run(run, tmp_path, capsys):
    again = tmp_path / "again"
    assert main(["train", "--from-run", str(run), "--run", str(again)]) == 0
    read = json.loads((again / "result.json").read_text())
    recorded = json.loads((run / "result.json").read_text())
    assert read["eval_bpb"] == recorded["eval_bpb"]
    assert (again / "config.json").read_text() == (run / "config.json").read_text()


def test_a_continued_run_tells_both_losses(run, tmp_path, capsys):
    directory = tmp_path / "next"
    where = ("--continue-from", str(run), "--run", str(directory))
    assert main(command("train", "--config", "tiny", *where)) == 0
    out = capsys.readouterr().out
    for name, folder in (("this model", directory), ("continued from", run)):
        told = float(re.search(rf"{name} +([\d.]+)", out).group(1))
        result = json.loads((folder / "result.json").read_text())
        assert told == pytest.approx(result["eval_bpb"], abs=1e-3)


def test_eval_equals_the_result(run, capsys):
    assert main(["eval", str(run)]) == 0
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines())
    recorded = json.loads((run / "result.json").read_text())
    assert float(printed["eval_bpb"]) == pytest.approx(recorded["eval_bpb"], rel=1e-5)


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
    assert main(["show", "tiny"]) == 0
    shown = capsys.readouterr().out
    for words in (
        *("model.depth = 4", "FLOPs per token", "optimizer state", "decay"),
        "while it is generated: ",
    ):
        assert words in shown
    assert main(["doctor"]) == 0
    assert "jaxlib" in capsys.readouterr().out


def test_list_and_show_mistakes(refused):
    refused(["list", "norm"], "unknown family 'norm'", "'norms'")
    refused(["show", "norms/rsm"], "unknown norms 'rsm'")
    refused(["show", "tinny"], "no config 'tinny'")


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
    assert main(command("train", "--config", "tiny", "--run", "run", sets=sets)) == 0


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


def test_stopped_runs_have_their_own_exit_code(tmp_path, monkeypatch, capsys):
    def stop(*_, **__):
        raise loop.Stopped(3)

    monkeypatch.setattr(loop, "train", stop)
    arguments = command("train", "--config", "tiny", "--run", str(tmp_path / "r"))
    assert main(arguments) == 42
    assert "saved at step 3" in capsys.readouterr().err


@pytest.mark.slow
def test_a_converted_run_is_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sets = ("model.norm=layer",)
    assert main(command("train", "--config", "tiny", "--run", "one", sets=sets)) == 0
    assert main(["transform", "pre_ln_to_pre_rms", "one", "--out", "two"]) == 0
    out, _ = capsys.readouterr()
    assert "model.norm = 'rms" in out
    assert "largest logit difference" in out
    assert main(["eval", "two"]) == 0
    assert main(["transform", "pre_ln_to_pre_rms", "two", "--out", "three"]) == 2
    _, err = capsys.readouterr()
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "three").exists()
