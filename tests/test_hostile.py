"""What somebody else wrote: nothing in it is run, and nothing outside is written."""

import json
import os
import pathlib
import subprocess
import sys
import typing

import pytest

from reslab.cli import main
from reslab.core import config as configs
from reslab.core import foreign, imports, registry
from reslab.core.errors import ReslabError
from reslab.drill.hostile import COMMANDS, FIELDS, attacks, hostile
from reslab.observe.metrics import Writers, check_writers
from reslab.observe.writers.jsonl import JsonLines
from reslab.runtime.inside import check_links, open_inside
from reslab.study.plan import PlannedRun
from reslab.study.slots import _told
from reslab.train import loop
from reslab.train.run import Run

SMALL = str(pathlib.Path(__file__).with_name("small.py"))
NORM = """
import flax.linen as nn
import pathlib

class Twice(nn.Module):
    factor: float = 2.0

    @nn.compact
    def __call__(self, x):
        return self.factor * x

build = Twice
pathlib.Path(__file__).with_name("ran").touch()
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory that is not on the path, as with the installed script."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(
        sys, "path", [p for p in sys.path if p not in ("", os.getcwd())]
    )
    return tmp_path / "here"


@pytest.fixture
def lab(here, request):
    """A module in the working directory, by a name of its own for each test."""
    name = f"lab_{abs(hash(request.node.name))}"
    (here / name).mkdir()
    (here / name / "norm.py").write_text(NORM)
    return name


@pytest.fixture
def refused(capsys):
    """Runs a command that must be refused in one line, and gives that line."""

    def check(*arguments):
        assert main(arguments) == 2
        out, err = capsys.readouterr()
        assert not out and len(err.splitlines()) == 1
        return err

    return check


def write_run(folder, **fields):
    config = configs.load(SMALL)
    configs.update(config, {k.replace("__", "."): v for k, v in fields.items()}.items())
    folder.mkdir()
    (folder / "config.json").write_text(configs.canonical_json(config) + "\n")
    return folder


def test_every_kind_of_attack_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    count = 2 * (len(dict(attacks())) - len(FIELDS) * len(COMMANDS)) + 20
    assert [found for found in hostile(tmp_path / "h", count, 0.0, main) if found] == []


@pytest.mark.exhaustive
def test_every_attack_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    every = hostile(tmp_path / "h", len(list(attacks())), 0.0, main)
    assert [found for found in every if found] == []


@pytest.mark.parametrize(
    "name", ["MyData", "my_data:1.0.0", "my_data/fast", "them:my_data", "my_data/a=1"]
)
def test_features_of_a_named_dataset_are_those_of_tfds(tmp_path, name):
    for folder in ("1.0.0", "fast/1.0.0"):
        (tmp_path / "my_data" / folder).mkdir(parents=True)
        text = '{"pythonClassName": "payload.Feature"}'
        (tmp_path / "my_data" / folder / "features.json").write_text(text)
    spec = f"tfds(name={name!r}, directory={str(tmp_path)!r})"
    with pytest.raises(ReslabError, match=r"'payload\.Feature'|TFDS's own"):
        list(registry.make("sources", spec).documents())
    with pytest.raises(ReslabError, match=r"'payload\.Feature'|TFDS's own"):
        registry.make("images", spec).load()


@pytest.mark.parametrize("name", ["idlelib.idle", "antigravity.x", "reslab.cli.main"])
def test_modules_that_are_always_there_are_refused(here, refused, name):
    write_run(here / "run", model__norm=name)
    said = refused("show", "run")
    assert f"model.norm needs the module {name!r}" in said
    assert f"--allow-import {name}" in said
    assert name not in sys.modules or name == "reslab.cli.main"


def test_what_is_allowed_is_imported(here, lab, refused, capsys):
    write_run(here / "run", model__norm=f"{lab}.norm(factor=3.0)")
    assert "--allow-import" in refused("show", "run")
    assert "--allow-import" in refused("show", "run", "--allow-import", f"{lab}.nor")
    assert "expected a name such as" in refused("show", "run", "--allow-import", "a/b")
    assert not (here / lab / "ran").exists()
    assert main(["show", "run", "--allow-import", lab]) == 0
    assert (here / lab / "ran").exists()
    # Allowed for that command alone.
    capsys.readouterr()
    assert "--allow-import" in refused("show", "run")
    assert not imports.allowed()


@pytest.mark.conformance
def test_a_persons_own_word_is_allowed_and_the_run_goes_on(here, lab, capsys):
    sets = ["--set", f"model.norm={lab}.norm", "--run", "run"]
    assert main(["train", "--config", SMALL, *sets]) == 0
    (here / "run" / "result.json").unlink()
    assert main(["train", "--config", SMALL, *sets]) == 0
    assert main(["eval", "run"]) == 2
    assert main(["eval", "run", "--allow-import", lab]) == 0
    assert main(["report", "run", "--out", "page.html"]) == 0
    assert main(["show", f"norms/{lab}.norm"]) == 0


def test_library_callers_name_modules_and_files_do_not(here, lab, monkeypatch):
    monkeypatch.syspath_prepend(str(here))
    assert registry.make("norms", f"{lab}.norm").factor == 2.0
    run = Run(write_run(here / "run", model__norm=f"{lab}.norm"))
    with pytest.raises(ReslabError, match="needs the module"):
        run.config()
    assert run.config(is_inert=True).model.norm == f"{lab}.norm"
    with imports.guarded([lab]):
        assert run.config().model.norm == f"{lab}.norm"


@pytest.mark.parametrize("name", [".x", "a..b", "a.b.", "a.class", "'a'.b", "f().x"])
def test_names_that_are_no_modules(name):
    with pytest.raises(ReslabError):
        registry.module("norms", name)


def test_paths_are_no_modules():
    fields = {
        "data.source": "mixture(sources=(\"text(path='a.txt')\", 'lab.mine'))",
        "data.tokenizer": "huggingface(path='tokenizer.json')",
        "optim.groups": (("a.b", {"method": "lab.one"}), (".", {"lr": 0.1})),
        "train.continue_from": "runs.old",
    }
    assert list(configs.outside(fields)) == [
        ("data.source", "lab.mine"),
        ("optim.groups", "lab.one"),
    ]


def test_a_path_is_a_path_and_a_spec_a_spec_in_every_variant():
    texts = {str, str | None, str | tuple}
    shared = 0
    for family in registry.FAMILIES:
        for name in registry.names(family):
            shared += sum(name in registry.names(f) for f in registry.FAMILIES) > 1
            build = registry.module(family, name).build
            hints = typing.get_type_hints(build)
            for key in registry.arguments(build).keys() & hints.keys():
                spec = f"{name}({key}='lab.mine')"
                is_named = list(registry.outside(family, spec)) == ["lab.mine"]
                assert not (is_named and hints[key] in texts), spec
                assert is_named or hints[key] != registry.Spec, spec
    assert shared >= 4  # Such as `jsonl`, a source and a writer.


@pytest.mark.parametrize(
    "text, words",
    [
        ("import sys\ndef get_config():\n    sys.exit(0)", "line 3: got SystemExit: 0"),
        ("raise KeyboardInterrupt", "line 1: got KeyboardInterrupt"),
        ("raise GeneratorExit('x')", "line 1: got GeneratorExit: x"),
        ("raise StopIteration", "line 1: got StopIteration"),
        ("class E(BaseException):\n    __str__ = None\nraise E", "line 3: got E"),
        ("raise ValueError('a\\x1b[31m' + 'b' * 9999)", r"ValueError: a\x1b[31mbbb"),
        ("def get_config(:", "syntax error in line 1"),
        ("\0", "got"),
    ],
)
@pytest.mark.parametrize("command", [("train", "--config"), ("sweep",)])
def test_whatever_a_file_raises_is_one_line(here, refused, text, words, command):
    (here / "mine.py").write_text(text.replace("get_config", _function(command)))
    said = refused(*command, "mine.py")
    assert words in said and len(said) < 500


def _function(command):
    return "get_study" if command[0] == "sweep" else "get_config"


def test_an_interrupt_from_the_keyboard_is_not_the_files():
    def interrupted():
        os.kill(os.getpid(), 2)

    with pytest.raises(KeyboardInterrupt):
        foreign.call("a file", None, interrupted)


@pytest.mark.conformance
@pytest.mark.parametrize("writers", [(), ("wandb",)])
def test_no_file_of_the_directory_stands_for_a_missing_package(here, writers):
    """Dependencies try to import packages that may not be installed."""
    run = write_run(here / "run", train__writers=writers)
    for name in ("nest_asyncio", "snappy", "msvcrt", "zstandard", "s3fs", "wandb"):
        text = f"open({str(here / 'ran')!r}, 'a').write({name!r})"
        (run / f"{name}.py").write_text(text)
    root = str(pathlib.Path(__file__).parent.parent)
    verb = ("train", "--from-run", ".") if writers else ("show", ".")
    done = subprocess.run(
        [sys.executable, "-m", "reslab", *verb],
        cwd=run,
        env={**os.environ, "PYTHONPATH": root, "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == (2 if writers else 0), done.stderr
    assert not (here / "ran").exists()


def test_a_config_imports_what_lies_beside_it(here):
    folder = here / "elsewhere"
    folder.mkdir()
    (folder / "shared_by_two.py").write_text("DEPTH = 3")
    text = f"""
from reslab.core.config import load
from shared_by_two import DEPTH
def get_config():
    config = load({SMALL!r})
    config.model.depth = DEPTH
    return config
"""
    (folder / "mine.py").write_text(text)
    before = list(sys.path)
    assert configs.load(str(folder / "mine.py")).model.depth == 3
    assert sys.path == before


def test_files_are_opened_through_no_link(tmp_path):
    (tmp_path / "run").mkdir()
    victim = tmp_path / "victim"
    victim.write_text("mine")
    link = tmp_path / "run" / "link"
    link.symlink_to(victim)
    for mode in ("w", "a", "a+"):
        with pytest.raises(ReslabError, match="a symbolic link"):
            open_inside(link, mode)
    with pytest.raises(ReslabError, match=r"run.link: .* a symbolic link"):
        check_links(tmp_path / "run")
    assert victim.read_text() == "mine"
    link.unlink()
    (tmp_path / "run" / "latest").symlink_to("there")  # As W&B makes them.
    check_links(tmp_path / "run")
    with open_inside(tmp_path / "run" / "new", "w") as file:
        file.write("a")


@pytest.mark.parametrize("mode", ["w", "a", "a+"])
def test_files_are_opened_that_are_files_of_one_name(tmp_path, mode):
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "victim").write_text("mine")
    os.link(tmp_path / "victim", run / "lock")
    with pytest.raises(ReslabError, match=r"run.lock: .* a hard link"):
        open_inside(run / "lock", mode)
    assert (tmp_path / "victim").read_text() == "mine"
    check_links(run)  # Only what is written to must be of one name.
    os.mkfifo(run / "metrics.jsonl")
    with pytest.raises(ReslabError, match=r"metrics.jsonl: .* a pipe"):
        open_inside(run / "metrics.jsonl", mode)
    with pytest.raises(ReslabError, match=r"metrics.jsonl: .* a pipe"):
        JsonLines(run / "metrics.jsonl")
    with pytest.raises(ReslabError, match=r"metrics.jsonl: .* a pipe"):
        check_links(run)
    (run / "new").write_text("longer")
    with open_inside(run / "new", mode) as file:
        file.write("a")
    assert (run / "new").read_text() == ("a" if mode == "w" else "longera")


def test_a_config_read_as_data_may_name_nothing_nested(tmp_path):
    for field, form in FIELDS:
        config = configs.load("base")
        text = f"{field}={form.format('lab.evil')}"
        configs.update(config, [configs.parse_override(text)])
        with pytest.raises(ReslabError, match=f"{field} needs the module 'lab.evil'"):
            configs.from_json(configs.canonical_json(config), "config")
        assert json.loads(configs.canonical_json(config))


ONLINE = "wandb(mode='online')"
WANDB = """
import pathlib

class Run:
    def log(self, *_, **__): pass
    def finish(self): pass

def init(mode, **_):
    pathlib.Path(__file__).with_name("asked").write_text(mode)
    return Run()
"""


@pytest.fixture
def asked(here, tmp_path, monkeypatch):
    """A package `wandb` that notes whether, and how, it was begun."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "wandb.py").write_text(WANDB)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    yield tmp_path / "site" / "asked"
    sys.modules.pop("wandb", None)


def test_a_recorded_config_sends_nothing_to_a_host(here, asked, refused):
    for number, mode in enumerate(("online", "shared", "dryrun")):
        run = write_run(here / f"{number}", train__writers=(f"wandb(mode='{mode}')",))
        said = refused("train", "--from-run", str(run), "--run", "new")
        assert "sends metrics to a host" in said and "--allow-import wandb" in said
    assert main(["show", str(run)]) == 0  # It sends nothing.
    assert not asked.exists() and not (here / "new").exists()


@pytest.mark.parametrize(
    ("recorded", "options", "mode"),
    [
        ("wandb", [], "offline"),
        (ONLINE, ["--set", f"train.writers=({ONLINE!r},)"], "online"),
        (ONLINE, ["--allow-import", "wandb"], "online"),
        (ONLINE, ["--set", "train.writers=('wandb',)"], "offline"),
    ],
)
def test_a_person_may_send_metrics(recorded, options, mode, here, asked, monkeypatch):
    def train(config, directory, **_):
        check_writers(config.train.writers)
        pathlib.Path(directory).mkdir()
        Writers(config.train.writers, directory).close()
        return {"eval_accuracy": 1.0}

    monkeypatch.setattr(loop, "train", train)
    run = write_run(here / "recorded", train__writers=(recorded,))
    assert main(["train", "--from-run", str(run), "--run", "new", *options]) == 0
    assert asked.read_text() == mode


def test_a_study_may_send_metrics():
    config = configs.load(SMALL)
    configs.update(config, [("train.writers", (ONLINE,))])
    planned = PlannedRun(0, "one", 0, config, configs.sha256(config))
    with imports.guarded(_told((planned,), 1)["allowed"]):
        imports.check_sending("train.writers", "wandb")
    with imports.guarded(), pytest.raises(ReslabError, match="sends metrics to a host"):
        check_writers((ONLINE,))
