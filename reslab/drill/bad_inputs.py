"""Requests that cannot be carried out."""

import itertools
import os
import pathlib
import random
import shutil
from collections.abc import Iterator, Sequence

from reslab.core import config as configs
from reslab.drill.commands import Program, answer
from reslab.drill.runs import SMALL

# Fields of the config, with invalid values.
WRONG: tuple[tuple[str, Sequence[str]], ...] = (
    ("seed", ("-1", "4294967296", "1.5", "many", "None")),
    ("model.name", ("llm", "lm(depth=2)", "rms", "''", "3")),
    ("model.features", ("0", "-8", "wide", "8.5", "(1,2)", "200000")),
    ("model.depth", ("0", "-1", "deep", "2.0", "True", "1000000", "9" * 30)),
    ("model.mixer", ("attn", "attention(head=2)", "attention(heads='two')", "()", "7")),
    ("model.ffn", ("swigl", "swiglu(", "swiglu(3)", "swiglu(a=b)", "None")),
    ("model.norm", ("rsm", "rms(eps=1)", "rms(use_gain=2)", "rms rms", "rms()()")),
    ("model.placement", ("before", "pre(x=1)", "pre post", "1", "os.system")),
    ("model.block", ("standart", "standard(a=1)", "[]", "nowhere.block", "...")),
    ("model.residual", ("hypr", "hyper(streams='two')", "hyper(stream=2)", "-", "0")),
    ("model.stack", ("loop", "looped(time=2)", "looped(", "''", "None")),
    ("model.linear", ("densse", "dense(bias=1)", "1.5", "dense()x", "{}")),
    ("model.position", ("rop", "rope(base='x')", "rope(bas=1)", "2", "a.b.c")),
    ("model.loop", ("rolled", "''", "0", "Scan", "None")),
    ("model.remat", ("some", "1", "True", "all", "Full")),
    ("model.embedding_scale", ("0", "-1", "x", "1e999", "None")),
    ("model.logit_softcap", ("-1", "x", "1e999", "None", "()")),
    ("model.vocabulary_multiple", ("0", "-4", "x", "1.0", "None")),
    ("precision.parameters", ("float8", "f32", "32", "''", "None")),
    ("precision.compute", ("half", "float", "16", "''", "None")),
    ("data.source", ("web", "text(path='nowhere')", "text()", "tfds()", "text(dir=1)")),
    ("data.tokenizer", ("byte", "bytes(size=2)", "bpe", "3", "''")),
    ("data.length", ("0", "-1", "10000000", "x", "1.5")),
    ("data.batch", ("0", "-8", "x", "1.5", "None", "10000000000")),
    ("data.workers", ("-1", "x", "1.5", "None", "(1,)")),
    ("data.replay", ("1.0", "-0.5", "0.5", "half", "None")),
    ("optim.name", ("adam", "adamw(beta=1)", "sgd(momentum='x')", "1", "adamw(")),
    ("optim.learning_rate", ("-1", "fast", "None", "1e999", "()")),
    ("optim.schedule", ("cosin", "cosine(warmup=-9)", "wsd(cooldown='x')", "1", "")),
    ("optim.weight_decay", ("-0.1", "x", "None", "1e999", "()")),
    ("optim.clip", ("-1", "x", "None", "1e999", "()", "1e999999", "9" * 400)),
    (
        "optim.groups",
        ("x", "(('nothing_like_it',{}),)", "((1,2),)", "(('.',{'lrr':1}),)", "3"),
    ),
    ("train.steps", ("0", "-5", "x", "1.5", "None", "9" * 6000)),
    ("train.accumulate", ("0", "3", "x", "-1", "1.5")),
    ("train.on_bad_step", ("stop", "skip(sigma=0)", "halt(limit=1)", "skip(", "1")),
    ("train.keep_every", ("-1", "x", "1.5", "None", "()")),
    ("train.checkpoint_every", ("0", "-1", "x", "1.5", "None")),
    ("train.keep_checkpoints", ("0", "-1", "x", "1.5", "None")),
    ("train.log_every", ("0", "-1", "x", "1.5", "None")),
    ("train.eval_every", ("0", "-1", "x", "1.5", "None")),
    ("train.writers", ("('disk',)", "tensorboard", "(1,)", "('jsonl(x=1)',)", "7")),
    ("train.continue_from", ("nowhere", "3", "None", "/", "()")),
    ("probes.names", ("('dream',)", "stream", "('stream(x=1)',)", "(1,)", "7")),
    ("eval.batch", ("0", "-1", "x", "1.5", "None")),
    ("eval.batches", ("-1", "x", "1.5", "None", "()")),
    ("model.kernels", ("pallas", "mosaic", "1", "''", "None")),
    ("model.init_std", ("-1", "x", "None", "1e999", "()")),
    ("model.embedding_std", ("-1", "x", "None", "1e999", "()")),
    ("model.vocabulary_chunks", ("-1", "x", "1.5", "None", "1000", "{{}: 1}")),
    ("model.tie_embeddings", ("2", "yes", "None", "''", "()")),
    ("model.use_head_bias", ("2", "yes", "None", "''", "()")),
    ("probes.every", ("-1", "x", "1.5", "None", "()")),
    ("probes.batch", ("0", "-1", "x", "1.5", "None")),
    ("train.orthogonality", ("-1", "x", "None", "1e999", "()")),
    ("train.z_loss", ("-1", "x", "None", "1e999", "()")),
    ("mesh.data", ("0", "3", "-2", "x", "1.5")),
    ("mesh.fsdp", ("0", "3", "-2", "x", "64")),
    ("mesh.tensor", ("0", "5", "-2", "x", "1.5")),
    ("mesh.sequence", ("0", "7", "-2", "x", "1.5")),
    ("mesh.dcn_data", ("0", "3", "-2", "x", "1.5")),
    ("mesh.cpu_devices", ("0", "-1", "x", "1.5", "None", "100000")),
)


def requests(directory: pathlib.Path) -> Iterator[list[str]]:
    """Command lines, the ones that differ most first.

    Args:
      directory: Where the files that they name lie.
    """
    usual = [f"--set={key}={value}" for key, value in SMALL.items()]
    train = ["train", "--config", "base", *usual]
    run, empty = str(directory / "damaged"), str(directory / "empty")
    files = {
        "syntax.py": "def get_config(:",
        "other.py": "x = 1",
        "raises.py": "def get_config():\n    return 1 / 0",
        "number.py": "def get_config():\n    return 3",
    }
    pathlib.Path(empty).mkdir(parents=True, exist_ok=True)
    pathlib.Path(run).mkdir(exist_ok=True)
    (pathlib.Path(run) / "config.json").write_text('{"seed": 0')
    (directory / "binary.txt").write_bytes(b"a\0b")
    (directory / "nothing.txt").write_bytes(b"")
    for name, text in files.items():
        (directory / name).write_text(text)
    yield from (["train", "--config", str(directory / name)] for name in files)
    yield from (
        ["train", "--config", "nothing"],
        ["train", "--config", "nowhere/base.py"],
        ["train", "--from-run", "nowhere"],
        ["train", "--from-run", empty],
        ["train", "--from-run", run],
        ["train", "--config", "base", "--set", "seed"],
        ["train", "--config", "base", "--set", "=1"],
        ["train", "--config", "base", "--set", "modle.depth=2"],
        ["train", "--config", "base", "--set", "model=lm"],
        ["train", "--config", "base", "--continue-from", "nowhere"],
        [*train, "--run", str(directory / "other.py")],
        [*train, "--run", run],
        [*train, f"--set=data.source=text(path='{directory / 'binary.txt'}')"],
        [*train, f"--set=data.source=text(path='{directory / 'nothing.txt'}')"],
        [*train, f"--set=data.source=array_record(path='{directory / 'other.py'}')"],
        [*train, "--coordinator", "here"],
        [*train, "--coordinator", "here:1", "--processes", "2"],
        [*train, "--coordinator", "here:1", "--processes", "0", "--process", "0"],
        [*train, "--coordinator", "here:1", "--processes", "2", "--process", "2"],
        [*train, "--coordinator", "here:x", "--processes", "2", "--process", "0"],
        ["eval", "nowhere"],
        ["eval", empty],
        ["eval", run],
        ["generate", "nowhere"],
        ["generate", empty],
        ["inspect", "nowhere"],
        ["inspect", empty],
        ["transform", "fuse_norm", "nowhere", "--out", "new"],
        ["transform", "melt", empty, "--out", "new"],
        ["import", "nowhere", "--out", "new"],
        ["import", empty, "--out", "new"],
        ["import", run, "--out", "new"],
        ["import", str(directory / "other.py"), "--out", "new"],
        ["export", "nowhere", "--out", "new"],
        ["export", empty, "--out", "new"],
        ["export", run, "--out", "new"],
        ["train"],
        ["list", "norm"],
        ["show", "norms/rsm"],
        ["show", "nothing"],
        ["sweep", "nowhere.py"],
        ["sweep", str(directory / "other.py")],
        ["report", "nowhere"],
        ["report", empty],
        ["compile", "base", "--topology", "v9:2x2"],
        ["compile", "base", "--topology", "v5e"],
        ["compile", "nothing"],
        ["drill", "--only", "sleep"],
        ["train", "--config", "base", "--watchdog", "nan"],
        ["train", "--config", "base", "--run", "r\udce9n"],
        ["generate", run, "--seed", "9" * 20],
        ["show", "norms/.x"],
        ["show", "blocks/reversible", "--width", "-1"],
        ["show", "value_paths/shared_values", "--width", "3"],
    )
    known = dict(configs.flatten(configs.load("base")))
    for index in range(max(len(values) for _, values in WRONG)):
        for key, values in WRONG:
            if key in known and index < len(values):
                yield [*train, f"--set={key}={values[index]}"]


def bad_inputs(
    directory: pathlib.Path, count: int, seed: float, program: Program
) -> Iterator[str | None]:
    """Makes bad requests of the command line; in a process of its own.

    Args:
      directory: For the files that they name; becomes the working directory.
      count: How many.
      seed: Chooses which, after the first of every kind.
      program: Runs a command line and returns its exit code.

    Yields:
      None, or the request that is not refused in one line.
    """
    (directory / "work").mkdir(parents=True)
    os.chdir(directory / "work")
    first, rest = itertools.tee(requests(directory))
    chosen = list(itertools.islice(first, count // 2))
    others = list(itertools.islice(rest, count // 2, None))
    chosen += random.Random(seed).sample(others, min(count - len(chosen), len(others)))
    for request in chosen:
        code, out, errors = answer(program, request)
        lines = out + errors
        written = [path.name for path in pathlib.Path().iterdir()]
        for name in written:
            shutil.rmtree(name, ignore_errors=True)
        is_refused = code == 2 and len(lines) == 1 and not written
        words = [w for w in request if w.removeprefix("--set=") not in _USUAL]
        last = lines[-1][:120] if lines else ""
        found = f"{' '.join(words)}: {code}, {len(lines)} lines, {written}, {last}"
        yield None if is_refused else found


_USUAL = frozenset(f"{key}={value}" for key, value in SMALL.items())
