"""Untrusted files with code, paths and links that try to do harm."""

import itertools
import json
import os
import pathlib
import random
import shutil
import sys
from collections.abc import Callable, Iterator

from reslab.core import config as configs
from reslab.drill.commands import Program, answer
from reslab.drill.runs import SMALL

# Places where a config may name a variant: a field's value, or an argument in it.
FIELDS: tuple[tuple[str, str], ...] = (
    ("model.norm", "'{}'"),
    ("optim.name", "\"heavy_tail(inner='{}')\""),
    ("model.mixer", "\"attention(heads=2, value_path='{}')\""),
    ("optim.groups", "(('.', {{'method': '{}'}}),)"),
    ("train.writers", "('{}',)"),
    ("probes.names", "('stream', '{}')"),
    ("data.source", "\"mixture(sources=('stdlib', '{}'))\""),
    ("model.norm", "('rms', \"progressive_rep_batch(first='{}')\")"),
    ("model.residual", "'{}'"),
    ("model.block", "\"reversible(residual='{}')\""),
    ("model.name", "'{}'"),
    ("data.tokenizer", "'{}(size=3)'"),
    ("optim.schedule", "'{}'"),
    ("optim.groups", "(('.', {{'scaling': '{}'}}),)"),
    ("model.linear", "\"chain(linear='{}')\""),
    ("model.placement", "\"sandwich(norm='{}')\""),
    ("model.position", "'{}'"),
    ("model.stack", "'{}'"),
    ("data.source", "'{}'"),
    ("model.ffn", "\"swiglu(linear='{}')\""),
    ("train.task", "'{}'"),
)
COMMANDS = (
    ("show", "{run}"),
    ("eval", "{run}"),
    ("train", "--from-run", "{run}"),
    ("generate", "{run}"),
    ("compile", "{run}"),
    ("inspect", "{run}"),
    ("transform", "pre_ln_to_pre_rms", "{run}", "--out", "converted"),
)
_OWN = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
# Features of a dataset, with the class to import.
FEATURES = (
    '{{"pythonClassName": "{}.Feature"}}',
    f'{{{{"pythonClassName": "{_OWN}", "featuresDict": {{{{"features": {{{{"text": '
    '{{"python_class_name": "{}.Text"}}}}}}}}',
    '{{"type": "{}.Feature", "content": {{}}}}',
)
WRITERS = (
    "jsonl(directory='{outside}', file='victim.txt')",
    "jsonl(file='../victim.txt')",
    "tensorboard(directory='{outside}')",
    "wandb(directory='{outside}')",
)
LINKS = (
    *("lock", "metrics.jsonl", "probes.jsonl", "metrics.jsonl.tmp", "run.json"),
    *("checkpoints", "tensorboard", "config.json", "checkpoints/begun"),
)

# One attack: creates its files in a directory and returns the command that reads them.
Attack = Callable[[pathlib.Path, str], list[str]]


def attacks() -> Iterator[tuple[str, Attack]]:
    """Yields every attack with its name, the most different ones first."""
    fields, pairs = itertools.cycle(FIELDS), itertools.product(FIELDS, COMMANDS)
    for command in COMMANDS:
        yield _config(next(fields), command)
    yield _features(FEATURES[0])
    yield _writer(WRITERS[0])
    yield from (_link(name) for name in LINKS[:3])
    yield _hard_link("lock")
    yield _pipe("metrics.jsonl")
    yield _continued()
    yield from (_features(form) for form in FEATURES[1:])
    yield from (_writer(spec) for spec in WRITERS[1:])
    yield from (_link(name) for name in LINKS[3:])
    yield from (_config(field, command) for field, command in pairs)


def _config(field: tuple[str, str], command: tuple[str, ...]) -> tuple[str, Attack]:
    def plant(here: pathlib.Path, module: str) -> list[str]:
        _write_run(here / "given", field, module)
        return [word.format(run="given") for word in command]

    return f"{command[0]} of {field[0]}={field[1]}", plant


def _continued() -> tuple[str, Attack]:
    def plant(here: pathlib.Path, module: str) -> list[str]:
        _write_run(here / "given", FIELDS[0], module)
        return [*_train(), "--continue-from", "given"]

    return "train --continue-from", plant


def _features(form: str) -> tuple[str, Attack]:
    def plant(here: pathlib.Path, module: str) -> list[str]:
        (here / "set").mkdir()
        (here / "set" / "features.json").write_text(form.format(module))
        about = {"name": "set", "version": "1.0.0", "moduleName": f"{module}.builder"}
        (here / "set" / "dataset_info.json").write_text(json.dumps(about))
        return [*_train(), "--set", "data.source=tfds(directory='set')"]

    return f"features {form}", plant


def _writer(spec: str) -> tuple[str, Attack]:
    def plant(here: pathlib.Path, module: str) -> list[str]:
        named = spec.format(outside=here.parent / "outside")
        return [*_train(), "--set", f"train.writers={(named,)!r}"]

    return f"writer {spec}", plant


def _link(name: str) -> tuple[str, Attack]:
    def plant(here: pathlib.Path, module: str) -> list[str]:
        given = here / "given" / name
        given.parent.mkdir(parents=True)
        victim = here.parent / "outside" / "victim.txt"
        given.symlink_to(victim.parent if name in _FOLDERS else victim)
        return [*_train(), "--run", "given"]

    return f"link {name}", plant


def _hard_link(name: str) -> tuple[str, Attack]:
    def plant(here: pathlib.Path, module: str) -> list[str]:
        (here / "given").mkdir()
        os.link(here.parent / "outside" / "victim.txt", here / "given" / name)
        return [*_train(), "--run", "given"]

    return f"hard link {name}", plant


def _pipe(name: str) -> tuple[str, Attack]:
    def plant(here: pathlib.Path, module: str) -> list[str]:
        (here / "given").mkdir()
        os.mkfifo(here / "given" / name)
        return [*_train(), "--run", "given"]

    return f"pipe {name}", plant


_FOLDERS = ("checkpoints", "tensorboard")


def _train() -> list[str]:
    usual = [f"--set={key}={value}" for key, value in SMALL.items()]
    return ["train", "--config", "base", *usual]


def _write_run(given: pathlib.Path, field: tuple[str, str], module: str) -> None:
    """A run directory whose config names a module."""
    config = configs.load("base")
    name, form = field
    configs.update(config, [configs.parse_override(f"{name}={form.format(module)}")])
    given.mkdir()
    (given / "config.json").write_text(configs.canonical_json(config) + "\n")


def hostile(
    directory: pathlib.Path, count: int, seed: float, program: Program
) -> Iterator[str | None]:
    """Gives untrusted files to the command line, in a process of its own.

    The module that is named lies in the working directory, and the path begins there:
    whatever tried to import it would run it.

    Args:
      directory: For the files; becomes the working directory.
      count: How many attacks.
      seed: Chooses which, after the first of every kind.
      program: Runs a command line and returns its exit code.

    Yields:
      None, or the attack that was not refused, or did harm.
    """
    known = list(attacks())
    first, others = known[: count // 2], known[count // 2 :]
    left = min(count - len(first), len(others))
    chosen = first + random.Random(seed).sample(others, left)
    outside = directory / "outside"
    victim = outside / "victim.txt"
    outside.mkdir(parents=True)
    victim.write_text("mine")
    here = directory / "work"
    sys.path.insert(0, str(here))
    try:
        for number, (name, plant) in enumerate(chosen):
            shutil.rmtree(here, ignore_errors=True)
            here.mkdir()
            os.chdir(here)
            # A new name every time: only the first import runs a module.
            package = here / f"payload{number}"
            package.mkdir()
            harm = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n"
            (package / "__init__.py").write_text(harm)
            (package / "norm.py").write_text("")
            command = plant(here, f"{package.name}.norm")
            code, out, errors = answer(program, command)
            said = out + errors
            problems = [
                problem
                for problem, is_true in (
                    ("the module ran", (package / "ran").exists()),
                    ("a file outside changed", victim.read_text() != "mine"),
                    ("a file was made outside", len([*outside.iterdir()]) != 1),
                    (f"exit {code}, not 2", code != 2),
                    (f"{len(said)} lines", len(said) != 1),
                )
                if is_true
            ]
            last = said[-1][:120] if said else ""
            yield f"{name}: {', '.join(problems)}; {last}" if problems else None
    finally:
        sys.path.remove(str(here))
