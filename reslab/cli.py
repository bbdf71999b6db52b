"""The command line: `reslab train | sweep | report | ...`.

Exit codes: 0 done, 1 some runs of a sweep failed, a compiled step does not fit the
chip, or the watchdog ended a run; 2 a mistake in the request (one line, nothing
written), 42 stopped on request with the state saved, 70 an error of reslab, the machine
or its storage, 75 diverged, 130 interrupted.
"""

import argparse
import contextlib
import math
import os
import pathlib
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from reslab import __version__
from reslab.commands.options import number, place, whole
from reslab.core import imports
from reslab.core.errors import ReslabError
from reslab.runtime.exits import BAD_INPUT, INTERNAL, INTERRUPTED, STOPPED, explain
from reslab.runtime.storage import local_path
from reslab.runtime.streams import outlive_readers, write_failure
from reslab.runtime.text import PrintableStream

if TYPE_CHECKING:
    from ml_collections import ConfigDict

# Larger corpora are not counted for the summary: the counts take memory.
LARGEST_COUNTED = 2**28


def program() -> int:
    """Runs the command of this process, whoever reads what it prints."""
    outlive_readers()
    return main()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    Args:
      arguments: The command line without the program's name; that of the
        process if None.
    """
    with (
        contextlib.redirect_stdout(PrintableStream(sys.stdout)),
        contextlib.redirect_stderr(PrintableStream(sys.stderr)),
    ):
        return _run(arguments)


def _run(arguments: Sequence[str] | None) -> int:
    # The heavy imports are inside the commands: --help answers at once.
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        _check_working_directory()
        with imports.guarded(getattr(options, "allow_import", ())):
            code = options.command(options) or 0
        if failure := write_failure():
            raise failure
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        explained = explain(error)
        if explained is None or sys.flags.dev_mode:
            traceback.print_exc()
        if explained is None:
            return INTERNAL
        code, line = explained
        print(f"reslab {options.verb}: {line}", file=sys.stderr)
        return code


def _check_working_directory() -> None:
    try:
        os.getcwd()
    except OSError as error:
        raise ReslabError(
            "the working directory", got=error.strerror, hint="cd to one that exists"
        ) from None


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, like everything else here."""

    def error(self, message: str) -> NoReturn:
        line = ReslabError(f"{self.prog}: {message}; try: {self.prog} --help")
        self.exit(BAD_INPUT, f"{line}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="reslab", description="A laboratory for the depth axis.")
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="command")

    def verb(name, command, text):
        added = verbs.add_parser(name, help=text, description=text)
        added.set_defaults(command=command)
        return added

    def importing(added):
        added.add_argument(
            "--allow-import",
            action="append",
            default=[],
            metavar="MODULE",
            help="let the config of a run name this module, such as lab, or ones below",
        )

    def configurable(added):
        importing(added)
        added.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="FIELD=VALUE",
            help="change one field of the config; may be repeated",
        )

    added = verb("train", _train, "train a model, or go on training it")
    group = added.add_mutually_exclusive_group(required=True)
    group.add_argument(
        "--config",
        type=place,
        help="a config file, or the name of one; a file is Python and is executed",
    )
    group.add_argument(
        "--from-run",
        type=place,
        metavar="DIR",
        help="the config recorded in a run directory",
    )
    configurable(added)
    added.add_argument(
        "--run",
        type=place,
        metavar="DIR",
        help="the run directory (default: by config)",
    )

    added.add_argument(
        "--strict-restore",
        action="store_true",
        help="refuse a damaged newest checkpoint instead of going on from an older one",
    )
    added.add_argument(
        "--watchdog",
        type=number(0),
        default=300.0,
        metavar="SECONDS",
        help="end the process after this long without a step, or 20 steps; 0 never",
    )
    added.add_argument(
        "--profile",
        metavar="FIRST:LAST",
        help="trace these steps, such as 10:13, to profile/ in the run directory",
    )
    added.add_argument(
        "--debug-nans",
        action="store_true",
        help="stop where the first NaN is made, with a traceback; slow",
    )
    many = added.add_argument_group(
        "several hosts", "on Cloud TPU they find each other; elsewhere they are told"
    )
    many.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0")
    many.add_argument("--processes", type=whole(1), metavar="N", help="how many")
    many.add_argument("--process", type=whole(0), metavar="I", help="which this is")
    added.add_argument(
        "--continue-from",
        type=place,
        metavar="RUN",
        help="start from the parameters of a run; data.replay mixes in its text",
    )

    added = verb("sweep", _sweep, "do the runs of a study, or go on with them")
    added.add_argument(
        "study",
        type=place,
        metavar="STUDY",
        help="a study file, or FILE:SCALE; it is Python and is executed",
    )
    configurable(added)
    added.add_argument(
        "--out", type=place, metavar="DIR", help="default: runs/<name of the study>"
    )
    added.add_argument(
        "--jobs", type=whole(1), default=1, help="runs at once (default: 1)"
    )
    chosen = added.add_mutually_exclusive_group()
    chosen.add_argument("--only", type=whole(0), metavar="INDEX", help="this run alone")
    chosen.add_argument(
        "--shard",
        metavar="I/N",
        help="every N-th run, from run I on: one of N machines",
    )
    added.add_argument(
        "--retry", action="store_true", help="also repeat runs that diverged"
    )
    added.add_argument(
        "--manifest", action="store_true", help="list the runs as JSON lines; run none"
    )

    added = verb("report", _report, "report a study, or runs, as one page")
    added.add_argument(
        "paths", nargs="+", type=place, metavar="STUDY|RUN", help="directories"
    )
    added.add_argument(
        "--out", type=place, metavar="FILE.html", help="default: in the study"
    )
    added.add_argument("--baseline", metavar="NAME", help="the case to compare with")
    added.add_argument(
        "--allow-mixed",
        action="store_true",
        help="runs with different corpora or budgets in one table, marked",
    )

    added = verb("eval", _eval, "evaluate a run on all of its held-out text")
    importing(added)
    added.add_argument("run", type=place, metavar="RUN", help="a run directory")

    added = verb("generate", _generate, "sample text from a run")
    importing(added)
    added.add_argument("run", type=place, metavar="RUN", help="a run directory")
    added.add_argument("--prompt", help="text to continue (default: a new document)")
    added.add_argument(
        "--length", type=whole(1, 2**20), help="tokens to add (default: 200)"
    )
    added.add_argument("--temperature", type=number(0), default=0.8, help="0 is greedy")
    added.add_argument("--top-k", type=whole(0), default=0, help="0 keeps all tokens")
    added.add_argument(
        "--top-p", type=number(0, 1), default=1.0, help="1 keeps all tokens"
    )
    added.add_argument("--samples", type=whole(1, 2**12), default=1, help="how many")
    added.add_argument(
        "--seed", type=whole(0, 2**32 - 1), default=0, help="chooses the samples"
    )

    added = verb("inspect", _inspect, "look inside a run, layer by layer")
    importing(added)
    added.add_argument(
        "run",
        type=place,
        metavar="RUN|STUDY",
        help="a run, or the directory of a study",
    )
    added.add_argument(
        "--probe",
        action="append",
        metavar="SPEC",
        help="a probe (`reslab list probes`); may be repeated (default: all)",
    )
    added.add_argument(
        "--step", type=whole(0), help="one step (default: all that are kept)"
    )

    added = verb("transform", _transform, "convert a run into one to go on from")
    importing(added)
    added.add_argument("name", metavar="NAME", help="see `reslab list transforms`")
    added.add_argument(
        "run", type=place, metavar="RUN", help="the run directory to convert"
    )
    added.add_argument(
        "--out", type=place, required=True, metavar="RUN2", help="the new one"
    )

    added = verb("list", _list, "list every variant, or those of one family")
    added.add_argument("family", nargs="?", help="a family, such as norms")
    added.add_argument(
        "--markdown",
        action="store_true",
        help="the names, as the table of docs/VARIANTS.md",
    )

    added = verb("show", _show, "show a variant (norms/rms) or a config in full")
    added.add_argument(
        "what", type=place, help="family/name, a config, or a run directory"
    )
    added.add_argument(
        "--width", type=whole(1, 2**20), default=128, help="for parameter shapes"
    )
    configurable(added)

    added = verb("compile", _compile, "cost of a step on an absent TPU")
    added.add_argument(
        "configs",
        nargs="+",
        type=place,
        metavar="CONFIG",
        help="a config, or a run directory",
    )
    added.add_argument(
        "--topology",
        default="v5e:2x4",
        metavar="SLICE",
        help="v4, v5e, v5p or v6e and its shape in chips (default: v5e:2x4)",
    )
    added.add_argument(
        "--what",
        default="train",
        choices=("train", "eval", "generate"),
        help="the step: of training (default), evaluation, or all of a generation",
    )
    added.add_argument(
        "--fit",
        action="store_true",
        help="where it does not fit, compile its remedies too, until one does",
    )
    configurable(added)
    added.add_argument(
        "--versus",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="compile again with this change, for one more column; may be repeated",
    )
    added.add_argument("--json", action="store_true", help="print JSON, not a table")

    added = verb("bench", _bench, "what kernels cost beside plain XLA, as CSV")
    added.add_argument(
        "what", choices=("ops",), help="ops: the operations with kernels"
    )
    added.add_argument(
        "--operation",
        action="append",
        default=[],
        metavar="NAME",
        help="such as depth_read; may be repeated (default: all)",
    )
    added.add_argument(
        "--target",
        action="append",
        default=[],
        metavar="CHIP",
        help="compile for an absent v5e, v5p or v6e; may be repeated (default: run)",
    )
    added.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="NAME",
        help="a shape of reslab/ops/*/shapes.py; may be repeated (default: all)",
    )
    added.add_argument("--dtype", default="bfloat16", help="default: bfloat16")
    added.add_argument("--out", type=place, metavar="FILE.csv", help="default: print")

    added = verb("data", _data, "tokenize a corpus, once and for all")
    added.add_argument("work", choices=["tokenize"])
    added.add_argument("source", metavar="SOURCE", help="such as \"jsonl(path='x')\"")
    added.add_argument("--tokenizer", default="bytes", help="default: bytes")
    added.add_argument(
        "--out", type=place, required=True, metavar="DIR", help="a new directory"
    )

    added = verb("drill", _drill, "plant faults in small runs and count what survives")
    added.add_argument(
        "--only", action="append", default=[], metavar="ROW", help="may be repeated"
    )
    added.add_argument("--nightly", action="store_true", help="many more faults; hours")
    added.add_argument(
        "--seed", type=whole(0), default=0, help="chooses where they are"
    )
    added.add_argument("--json", action="store_true", help="print JSON, not lines")

    verb("doctor", _doctor, "print versions, devices and missing extras")
    return parser


def _configure(
    options: argparse.Namespace, source: str, *, is_run: bool
) -> "ConfigDict":
    """Loads the config of a file, a name or a run directory and applies `--set`."""
    from reslab.core import config as configs
    from reslab.parallel.hosts import configure_cpu
    from reslab.train.run import Run

    config = Run(pathlib.Path(source)).config() if is_run else configs.load(source)
    changes = [configs.parse_override(text) for text in options.set]
    configs.update(config, changes)
    # What a person wrote, in a file of Python or on the command line.
    words = changes if is_run else configs.flatten(config)
    imports.allow(*(module for _, module in configs.outside(dict(words))))
    configure_cpu(config.mesh.cpu_devices)
    return config


def _train(options: argparse.Namespace) -> int:
    from reslab.train.run import default_directory

    source = options.config or options.from_run
    if options.from_run:
        _check_is_run(source)
    if options.continue_from:
        _check_is_run(options.continue_from)
        options.set.append(f"train.continue_from={options.continue_from!r}")
    config = _configure(options, source, is_run=bool(options.from_run))
    from reslab.parallel.hosts import is_writer, join

    join(options.coordinator, options.processes, options.process)
    name = pathlib.Path(source).stem
    if options.from_run:
        name += "-rerun"
    directory = options.run or default_directory(name, config)

    import jax

    from reslab.train import loop
    from reslab.train.ending import end

    if options.debug_nans:
        jax.config.update("jax_debug_nans", True)
    try:
        result = loop.train(
            config,
            directory,
            watchdog=options.watchdog,
            is_strict=options.strict_restore,
            profile=options.profile,
        )
    except (Exception, KeyboardInterrupt) as error:
        return end(error, "reslab train: ")
    if jax.process_count() > 1:
        if is_writer():
            print(f"{result}\nrun directory  {directory}")
        return 0
    _summarize(config, directory, result, source)
    return 0


def _summarize(
    config: "ConfigDict", directory: Any, result: dict[str, Any], source: str
) -> None:
    """Prints what the run came to, beside count models of the same text."""
    from reslab.data.corpus import load_corpus
    from reslab.data.ngrams import ngram_bits_per_byte
    from reslab.train.run import Run

    if "eval_bpb" not in result:
        for name, value in result.items():
            if name.startswith("eval_"):
                print(f"{name} {value:.6g}")
        print(f"run directory  {directory}")
        return
    rows = [("this model", result["eval_bpb"])]
    if config.train.continue_from:
        before = Run(pathlib.Path(config.train.continue_from)).result() or {}
        if "eval_bpb" in before:
            rows.append(("continued from", before["eval_bpb"]))
    print("\nheld-out bits per byte")
    corpus = load_corpus(config.data.source, config.data.tokenizer)
    if (
        config.data.tokenizer == "bytes"
        and corpus.bytes <= LARGEST_COUNTED
        and not corpus.others
    ):
        for order, name in ((3, "trigram"), (2, "bigram"), (1, "unigram")):
            bits = ngram_bits_per_byte(corpus.train, corpus.validation, order)
            rows.append((f"{name} counts", bits))
    for name, bits in rows:
        print(f"  {name:15}  {bits:.3f}")
    print("\nsample")
    for line in _sample(directory, config, length=None)[0].splitlines():
        print(f"  {line}")
    if "tokens_per_second" in result:
        print(f"\n{result['tokens_per_second']:,.0f} tokens/s")
    print(f"run directory  {directory}")
    print("next")
    print(f"  reslab generate {directory} --prompt 'def '")
    print(f"  reslab show {directory}")
    print(f"  reslab train --config {source} --set model.residual='hyper(streams=4)'")
    print("  reslab list")


def _sample(
    directory: Any,
    config: "ConfigDict",
    *,
    length: int | None,
    prompt: str | None = None,
    **sampling: Any,
) -> list[str]:
    import jax
    import numpy as np

    from reslab.core import registry
    from reslab.data.corpus import tokenizer_sha256
    from reslab.train.generate import generate
    from reslab.train.memory import check_generation

    tokenizer = registry.make("tokenizers", config.data.tokenizer)
    ids = [] if prompt is None else list(tokenizer.encode(_bytes_of(prompt)))
    if prompt is not None and not ids:
        raise ReslabError(
            "--prompt",
            expected="at least one token",
            got=repr(prompt),
            hint="leave it out to begin a new document",
        )
    samples = sampling.pop("samples", 1)
    # No text is read: of the data only the tokenizer is compared.
    record = {"tokenizer_sha256": tokenizer_sha256(tokenizer, config.data.tokenizer)}
    setup, variables = _restore(directory, config, jax.devices()[:1], record)
    model = setup.model
    tokens = np.tile(np.asarray([[tokenizer.bos, *ids]]), (samples, 1))
    if length is None:
        limit = model.position_limit
        length = 200 if limit is None else max(1, min(200, limit - tokens.shape[1]))
    check_generation(setup, samples, tokens.shape[1] + length)
    new = np.asarray(generate(model, variables, tokens, length, **sampling))
    return [(prompt or "") + tokenizer.decode(row) for row in new]


def _bytes_of(prompt: str) -> bytes:
    """The bytes that were typed, also where they are no text of the locale."""
    try:
        return prompt.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ReslabError("--prompt", expected="text", got=repr(prompt)) from None


def _restore(
    directory: Any, config: "ConfigDict", devices: Any, record: Any = None
) -> Any:
    """The setup of a run on `devices`, and its newest parameters and state.

    `record` is what is compared of the data; None compares the corpus too.
    """
    from reslab.parallel.mesh import make_mesh
    from reslab.train.checkpoint import Checkpoints
    from reslab.train.memory import check_memory
    from reslab.train.run import Run
    from reslab.train.state import make_setup, restore_variables

    mesh = make_mesh({"data": -1, "fsdp": 1, "tensor": 1}, devices)
    setup = make_setup(config, mesh)
    check_memory(setup, is_training=False)
    run = Run(pathlib.Path(directory))
    identity = run.identity(setup.task.record() if record is None else record)
    with Checkpoints(
        run.checkpoints, is_read_only=True, identity=identity
    ) as checkpoints:
        return setup, restore_variables(checkpoints, setup)


def _check_is_run(directory: str) -> None:
    if not local_path(directory, "run directory").is_dir():
        raise ReslabError(directory, expected="a run directory", got="nothing there")


def _open_run(options: argparse.Namespace) -> "ConfigDict":
    _check_is_run(options.run)
    options.set = []
    return _configure(options, options.run, is_run=True)


def _sweep(options: argparse.Namespace) -> int:
    from reslab.study.plan import choose, plan
    from reslab.study.sweep import SweepStopped, sweep

    planned = plan(options.study, options.set, options.out)
    if options.manifest:
        print("\n".join(planned.manifest()))
        return 0
    runs = choose(planned, options.only, options.shard)
    try:
        tally = sweep(planned, runs=runs, jobs=options.jobs, is_retrying=options.retry)
    except SweepStopped:
        print("stopped and saved; the same command goes on from here", file=sys.stderr)
        return STOPPED
    for run, message in tally.failed:
        print(f"failed: {run.case}, seed {run.seed}: {message}")
    print(f"{len(tally.done)} of {len(runs)} runs are finished")
    print(f"next\n  reslab report {planned.directory}")
    return 1 if tally.failed else 0


def _report(options: argparse.Namespace) -> int:
    from reslab.study.report import answer, write_report

    choices = {"baseline": options.baseline, "allow_mixed": options.allow_mixed}
    page = write_report(options.paths, options.out, **choices)
    print(answer(options.paths, **choices))
    print(f"\nreport  {page}")
    return 0


def _eval(options: argparse.Namespace) -> int:
    config = _open_run(options)

    import jax

    from reslab.core.model_state import check_updated
    from reslab.train.evaluate import Evaluator

    devices = jax.devices()
    # All devices where they share the batch evenly, otherwise one.
    devices = devices if config.eval.batch % len(devices) == 0 else devices[:1]
    setup, variables = _restore(options.run, config, devices)
    check_updated(variables)
    evaluator = Evaluator(setup)
    found = evaluator(variables)
    for name, value in found.items():
        if not math.isfinite(value):
            raise ReslabError(
                f"{options.run}: {name}", expected="a finite value", got=str(value)
            )
    for name, value in found.items():
        print(f"{name} {value:.6g}")
    return 0


def _generate(options: argparse.Namespace) -> int:
    config = _open_run(options)
    samples = _sample(
        options.run,
        config,
        prompt=options.prompt,
        length=options.length,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        samples=options.samples,
        seed=options.seed,
    )
    print("\n---\n".join(samples))
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from reslab.core import registry
    from reslab.runtime.inside import check_links
    from reslab.study.plan import finished_runs
    from reslab.train.probe import inspect_run, table

    imports.allow(*registry.outside(options.probe or ()))
    check_links(options.run)
    runs = finished_runs(options.run)
    for run in runs or [pathlib.Path(options.run)]:
        options.run = str(run)
        _open_run(options)
        records = inspect_run(run, options.probe, options.step)
        if not runs:
            print(table(records[-1]))
            print()
        print(f"all steps and matrices  {run}/inspect.jsonl")
    return 0


def _transform(options: argparse.Namespace) -> int:
    _open_run(options)

    from reslab.core import registry
    from reslab.train.transform import transform_run

    imports.allow(*registry.outside(options.name))

    result = transform_run(options.name, options.run, options.out)
    for key, value in sorted(result.changes.items()):
        print(f"{key} = {value!r}")
    print(
        f"\nlargest logit difference  {result.logit_difference:.3g} "
        f"(float32, {result.tokens:,} held-out tokens, "
        f"logits up to {result.largest_logit:.3g})"
    )
    print(f"run directory  {options.out}, from step {result.step} of {options.run}")
    print("next")
    print(f"  reslab eval {options.out}")
    print(f"  reslab train --from-run {options.out} --run {options.out}")
    return 0


def _list(options: argparse.Namespace) -> int:
    from reslab.commands.variants import list_variants, variants_table

    print(variants_table() if options.markdown else list_variants(options.family))
    return 0


def _show(options: argparse.Namespace) -> int:
    from reslab.commands.variants import show_config, show_variant
    from reslab.core import registry
    from reslab.train.run import Run

    family, _, variant = options.what.partition("/")
    if family in registry.FAMILIES:
        imports.allow(*registry.outside(variant))
        print(show_variant(options.what, options.width))
    else:
        path = pathlib.Path(options.what)
        is_run = (path / "config.json").is_file()
        config = _configure(options, options.what, is_run=is_run)
        if is_run:
            Run(path).result()  # Refuses one that is damaged.
        steps = [p.name for p in path.glob("checkpoints/*") if p.name.isdigit()]
        print(show_config(config, step=max(map(int, steps), default=0)))
    return 0


def _compile(options: argparse.Namespace) -> int:
    from reslab.core import config as configs
    from reslab.train.compiled import as_json, compile_configs, table

    named: dict[str, ConfigDict] = {}
    for source in options.configs:
        is_run = (pathlib.Path(source) / "config.json").is_file()
        for change in (None, *options.versus):
            config = _configure(options, source, is_run=is_run)
            # Runs of the same name are told apart by their paths.
            stems = [pathlib.Path(path).stem for path in options.configs]
            stem = pathlib.Path(source).stem
            name = stem if stems.count(stem) == 1 else source
            if change is not None:
                field, value = configs.parse_override(change)
                configs.update(config, [(field, value)])
                imports.allow(*(m for _, m in configs.outside({field: value})))
                name += f", {change}"
            if name in named:
                raise ReslabError(f"{name} is there twice")
            named[name] = config

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    reports = compile_configs(
        named, options.topology, tell, work=options.what, is_fitting=options.fit
    )
    write = as_json if options.json else table
    print(write(reports, options.topology))
    return 0 if all(report.is_fitting for report in reports) else 1


def _bench(options: argparse.Namespace) -> int:
    from reslab.commands.kernels import as_csv, bench_ops
    from reslab.runtime.files import write_whole

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    out = local_path(options.out, "--out") if options.out else None
    # Before the minutes that it takes to compile.
    if out and not os.access(out.parent, os.W_OK):
        raise ReslabError(
            f"--out {out}",
            expected="a file in a directory that can be written",
            hint="--out FILE.csv",
        )
    arguments = options.operation, options.target, options.shape, options.dtype
    text = as_csv(bench_ops(*arguments, tell))
    if out:
        write_whole(out, text)
    else:
        print(text, end="")
    return 0


def _data(options: argparse.Namespace) -> int:
    import time

    from reslab.core import registry
    from reslab.data.tokenized import tokenize

    imports.allow(*registry.outside([options.source, options.tokenizer]))
    began = told = time.monotonic()

    def tell(documents: int, size: int) -> None:
        nonlocal told
        if time.monotonic() - told >= 2.0:
            told = time.monotonic()
            print(
                f"{documents:,} documents  {size / 1e6:,.0f} MB  "
                f"{size / 1e6 / (told - began):,.1f} MB/s",
                file=sys.stderr,
                flush=True,
            )

    record = tokenize(options.source, options.tokenizer, options.out, tell)
    for name, count in record["tokens"].items():
        print(f"{name:10}  {count:,} tokens")
    print(f"{'sha256':10}  {record['sha256']}")
    print("next\n  reslab train --config small_124m --set \\")
    print(f"    data.source=\"tokens(path='{options.out}')\"")
    return 0


def _drill(options: argparse.Namespace) -> int:
    from reslab.drill import as_json, drill
    from reslab.runtime.files import scratch_directory

    def tell(line: str) -> None:
        print(line, file=sys.stderr if options.json else sys.stdout, flush=True)

    with scratch_directory("reslab.drill-") as directory:
        outcomes = drill(
            directory / "runs",
            options.only,
            is_nightly=options.nightly,
            seed=options.seed,
            tell=tell,
        )
    if options.json:
        print(as_json(outcomes))
    return 1 if any(outcome.broken for outcome in outcomes) else 0


def _doctor(options: argparse.Namespace) -> int:
    import json

    from reslab.observe.environment import environment, extras

    print(json.dumps(environment(), indent=1))
    for extra, packages in extras().items():
        missing = [name for name, version in packages.items() if version is None]
        state = f"missing {', '.join(missing)}" if missing else "complete"
        print(f"extra {extra}: {state}")
    return 0


if __name__ == "__main__":
    sys.exit(program())
