"""Files of one run, put in the place of another's."""

import contextlib
import importlib.util
import io
import itertools
import json
import pathlib
import random
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from reslab.core import config as configs
from reslab.drill.commands import Program, answer
from reslab.drill.found import fingerprint
from reslab.drill.runs import Workshop, small

STEPS = 8
SOURCE = "synthetic(documents=60{})"
# How each command reads a run; `train` continues it.
READERS: dict[str, tuple[str, ...]] = {
    "train": ("train", "--from-run", "{run}", "--run", "{run}"),
    "eval": ("eval", "{run}"),
    "generate": ("generate", "{run}", "--length", "4"),
    "inspect": ("inspect", "{run}", "--probe", "stream"),
    "transform": ("transform", "fuse_norm", "{run}", "--out", "{run}-new"),
    "continue": (
        *("train", "--from-run", "{run}", "--run", "{run}-new"),
        *("--continue-from", "{run}"),
    ),
}
# Two runs, of seeds 0 and 1, stopped before their last step, and their data.
Runs = tuple[pathlib.Path, pathlib.Path]

# Lines that every run prints: its description, its stages and its steps.
USUAL = re.compile(
    r"(parameters|devices|data|run directory|compile cache)  |train \d|.* \.\.\.$"
    r"|.*: [\d.]+ s$"
)


def exchange(
    workshop: Workshop, count: int, chance: random.Random
) -> Iterator[str | None]:
    """With another's checkpoint, record, corpus or tokenizer a run is refused.

    Lines of metrics that are not its own are set aside, and told; it ends the same.
    """
    yield from workshop.call(
        _exchange, workshop.new(), count, chance.random(), workshop.program
    )


def _exchange(
    directory: pathlib.Path, count: int, seed: float, program: Program
) -> Iterator[str | None]:
    chance = random.Random(seed)
    has_files = importlib.util.find_spec("tokenizers") is not None
    known = [name for name in CHANGES if has_files or name != "tokenizer"]
    made = {kind: _make(directory / kind, kind) for kind in ("stored", "words")}
    whole = {kind: fingerprint(runs[0]) for kind, runs in made.items()}
    cases = [(name, reader) for name in known for reader in CHANGES[name][2]]
    chance.shuffle(cases)
    # The first of every change, then all of them, repeatedly.
    first = {name: (name, reader) for name, reader in cases}
    rest = [case for case in cases if first[case[0]] != case]
    chosen = itertools.chain(first.values(), rest, itertools.cycle(cases))
    for number, (name, reader) in enumerate(itertools.islice(chosen, count)):
        kind, change, _ = CHANGES[name]
        data, kept = directory / kind / "data", directory / f"{number}-data"
        shutil.copytree(data, kept)
        runs = _copies(made[kind], directory / f"{number}")
        change(runs, data, chance)
        command = [word.format(run=runs[0]) for word in READERS[reader]]
        code, _, lines = answer(program, command)
        lines = [line[:300] for line in lines if not USUAL.match(line)]
        found = f"{name}, {reader}: {code}, {lines}"
        if name in TOLD:
            is_right = code == 0 and len(lines) == 1 and "metrics.jsonl" in lines[0]
            is_right = (
                is_right and fingerprint(runs[0])["state"] == whole[kind]["state"]
            )
        else:
            is_right = code == 2 and len(lines) == 1
        is_right = is_right and not (runs[0].parent / f"{runs[0].name}-new").exists()
        yield None if is_right else found
        shutil.rmtree(data)
        kept.rename(data)
        shutil.rmtree(directory / f"{number}")


def _make(directory: pathlib.Path, kind: str) -> Runs:
    """Trains two runs on stored tokens, or on those of a tokenizer's file."""
    from reslab.data.tokenized import tokenize
    from reslab.train import loop

    data = directory / "data"
    data.mkdir(parents=True)
    fields: dict[str, Any] = {"data__source": SOURCE.format("")}
    if kind == "stored":
        for number in (0, 1):
            source = SOURCE.format(f", seed={number}")
            tokenize(source, "bytes", data / f"corpus{number}")
        fields["data__source"] = f"tokens(path={str(data / 'corpus0')!r})"
    else:
        for number in (0, 1):
            _save_words(data / f"{number}.json", 1 - 2 * number)
        spec = f"huggingface(path={str(data / '0.json')!r})"
        if importlib.util.find_spec("tokenizers") is not None:
            fields["data__tokenizer"] = spec
    fields |= {"train__steps": STEPS, "train__checkpoint_every": STEPS // 2}
    runs = directory / "0", directory / "1"
    for number, run in enumerate(runs):
        with contextlib.redirect_stderr(io.StringIO()):
            loop.train(configs.from_json(small(**fields, seed=number), "config"), run)
    return runs


def _save_words(path: pathlib.Path, order: int) -> None:
    """A tokenizer of syllables, numbered from either end: files of one size."""
    pieces = [a + b for a in "bdfklmnprs" for b in "aeiou"] + [" ", ".", "\n", "[UNK]"]
    pieces += sorted(
        {letter for piece in pieces for letter in piece if piece != "[UNK]"}
    )
    pieces = list(dict.fromkeys(pieces))[::order]
    model = {"type": "BPE", "unk_token": "[UNK]", "fuse_unk": False, "dropout": None}
    model |= {"continuing_subword_prefix": None, "end_of_word_suffix": None}
    model |= {"vocab": {piece: index for index, piece in enumerate(pieces)}}
    model |= {"merges": [list(p) for p in pieces if len(p) == 2]}
    empty = ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor")
    content: dict[str, Any] = dict.fromkeys(empty) | {"decoder": None}
    content |= {"version": "1.0", "added_tokens": [], "model": model}
    path.write_text(json.dumps(content))


def _copies(runs: Runs, place: pathlib.Path) -> Runs:
    """Copies of the runs, as if killed between their two checkpoints."""
    for run in runs:
        shutil.copytree(run, place / run.name)
        (place / run.name / "result.json").unlink()
        shutil.rmtree(place / run.name / "checkpoints" / str(STEPS))
    return place / runs[0].name, place / runs[1].name


def _swap(one: pathlib.Path, other: pathlib.Path) -> None:
    between = one.with_name(f"{one.name}-between")
    one.rename(between)
    other.rename(one)
    between.rename(other)


def _swapped(*names: str) -> Callable[..., None]:
    def change(runs: Runs, data: pathlib.Path, chance: random.Random) -> None:
        for name in names:
            _swap(runs[0] / name, runs[1] / name)

    return change


def _swapped_data(one: str, other: str) -> Callable[..., None]:
    def change(runs: Runs, data: pathlib.Path, chance: random.Random) -> None:
        _swap(data / one, data / other)

    return change


def _shuffled(runs: Runs, data: pathlib.Path, chance: random.Random) -> None:
    path = data / "corpus0" / "train.tokens"
    tokens = np.fromfile(path, "<u2")
    np.random.default_rng(chance.getrandbits(32)).shuffle(tokens)
    tokens.tofile(path)


def _edited(runs: Runs, data: pathlib.Path, chance: random.Random) -> None:
    (runs[0] / "run.json").unlink()
    path = runs[0] / "config.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 7'))


def _doubled(runs: Runs, data: pathlib.Path, chance: random.Random) -> None:
    path = runs[0] / "metrics.jsonl"
    path.write_text(2 * path.read_text())


def _deleted(runs: Runs, data: pathlib.Path, chance: random.Random) -> None:
    (runs[0] / "metrics.jsonl").unlink()


ALL = tuple(READERS)
# Commands that also read the text; continuing a run does not require its text.
TEXT = ("train", "eval", "inspect", "transform")
# Data, method, and the commands that must refuse it.
CHANGES: dict[str, tuple[str, Callable[..., None], tuple[str, ...]]] = {
    "checkpoints": ("stored", _swapped("checkpoints"), ALL),
    "one checkpoint": ("words", _swapped(f"checkpoints/{STEPS // 2}"), ALL),
    "run.json": ("stored", _swapped("run.json"), ALL),
    "config.json": ("words", _swapped("config.json"), ALL),
    "both": ("stored", _swapped("run.json", "config.json"), ALL),
    "an edited config": ("words", _edited, ALL),
    "corpus": ("stored", _swapped_data("corpus0", "corpus1"), TEXT),
    "tokens": ("stored", _shuffled, TEXT),
    "tokenizer": ("words", _swapped_data("0.json", "1.json"), ALL),
    "metrics": ("stored", _swapped("metrics.jsonl"), ("train",)),
    "doubled metrics": ("words", _doubled, ("train",)),
    "deleted metrics": ("stored", _deleted, ("train",)),
}
TOLD = ("metrics", "doubled metrics", "deleted metrics")
