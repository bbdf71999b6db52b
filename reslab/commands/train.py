"""`reslab train`: train a model, or resume its training."""

import argparse
import contextlib
import pathlib
import shlex
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from reslab.commands.options import compiling, configurable, number, place, whole
from reslab.commands.runs import check_is_run, configure
from reslab.core.errors import ReslabError
from reslab.runtime.exits import explain

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from reslab.data.corpus import Corpus
    from reslab.train.api import Trained
    from reslab.train.tasks import Task

HELP = "train a model, or resume its training"
# Larger corpora are not counted for the summary: the counts take memory.
LARGEST_COUNTED = 2**28


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    group = parser.add_mutually_exclusive_group()
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
    configurable(parser)
    compiling(parser)
    parser.add_argument(
        "--run",
        type=place,
        metavar="DIR",
        help="the run directory (default: by config)",
    )
    parser.add_argument(
        "--strict-restore",
        action="store_true",
        help="refuse a damaged newest checkpoint instead of using an older one",
    )
    parser.add_argument(
        "--watchdog",
        type=number(0),
        default=300.0,
        metavar="SECONDS",
        help="end the process after this long without a step, or 20 steps; 0 never",
    )
    parser.add_argument(
        "--profile",
        metavar="FIRST:LAST",
        help="trace these steps, such as 10:13, to profile/ in the run directory",
    )
    parser.add_argument(
        "--debug-nans",
        action="store_true",
        help="stop where the first NaN is made, with a traceback; slow",
    )
    many = parser.add_argument_group(
        "several hosts", "found automatically on Cloud TPU; elsewhere set these options"
    )
    many.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0")
    many.add_argument("--processes", type=whole(1), metavar="N", help="how many")
    many.add_argument("--process", type=whole(0), metavar="I", help="which this is")
    parser.add_argument(
        "--continue-from",
        type=place,
        metavar="RUN",
        help="start from the parameters of a run, with its config if none is given; "
        "data.replay mixes in its text",
    )


def run(options: argparse.Namespace) -> int:
    """Trains a model and prints a summary."""
    from reslab.core import config_files
    from reslab.train.run import default_directory

    if not (options.config or options.from_run or options.continue_from):
        raise ReslabError(
            "one of the arguments --config --from-run is required, or --continue-from"
        )
    if not options.config:
        options.from_run = options.from_run or options.continue_from
    source = options.config or options.from_run
    if options.from_run:
        check_is_run(source)
    if options.continue_from:
        check_is_run(options.continue_from)
        options.set.append(f"train.continue_from={options.continue_from!r}")
    config = configure(options, source, is_run=bool(options.from_run))
    from reslab.parallel.hosts import is_writer, join

    join(options.coordinator, options.processes, options.process)
    name = config_files.short_name(source)
    if options.from_run:
        name = f"{pathlib.Path(source).stem}-rerun"
    directory = options.run or default_directory(name, config)

    import jax

    from reslab.train import api
    from reslab.train.ending import end

    if options.debug_nans:
        jax.config.update("jax_debug_nans", True)
    try:
        trained = api.train(
            config,
            directory,
            watchdog=options.watchdog,
            is_strict=options.strict_restore,
            profile=options.profile,
        )
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        return end(error, "reslab train: ")
    if jax.process_count() > 1:
        if is_writer():
            print(f"{trained.result}\nrun directory  {directory}")
        return 0
    with _whole_without("summary"):
        _summarize(config, trained)
    again = ["--from-run" if options.from_run else "--config", source]
    if options.continue_from:
        own = [] if source == options.continue_from else again
        again = ["--continue-from", options.continue_from, *own]
    _point_on(directory, config, shlex.join(again))
    return 0


@contextlib.contextmanager
def _whole_without(what: str) -> Iterator[None]:
    """Tells in a line why something that a finished run does not need is missing."""
    try:
        yield
    except Exception as error:
        if (explained := explain(error)) is None:
            raise
        print(f"no {what}: {explained[1]}", file=sys.stderr)


def _summarize(config: "ConfigDict", trained: "Trained") -> None:
    """Prints what the run came to, beside count models of text that is loaded."""
    from reslab.data.ngrams import ngram_bits_per_byte
    from reslab.observe.phases import Phases
    from reslab.train import api
    from reslab.train.run import Run

    result = trained.result
    if "eval_bpb" not in result:
        for name, value in result.items():
            if name.startswith("eval_"):
                print(f"{name} {value:.6g}")
        return
    rows = [("this model", result["eval_bpb"])]
    if config.train.continue_from:
        before = Run(pathlib.Path(config.train.continue_from)).result() or {}
        if "eval_bpb" in before:
            rows.append(("continued from", before["eval_bpb"]))
    print("\nheld-out bits per byte")
    corpus = _counted(config, trained.task)
    if corpus and corpus.bytes <= LARGEST_COUNTED and not corpus.others:
        for order, name in ((3, "trigram"), (2, "bigram"), (1, "unigram")):
            bits = ngram_bits_per_byte(corpus.train, corpus.validation, order)
            rows.append((f"{name} counts", bits))
    for name, bits in rows:
        print(f"  {name:15}  {bits:.3f}")
    with Phases()("sampling"):
        (text,) = api.generate(trained.directory, temperature=1.0)
    print("\nsample")
    for line in text.splitlines():
        print(f"  {line}")
    if "tokens_per_second" in result:
        print(f"\n{result['tokens_per_second']:,.0f} tokens/s")


def _counted(config: "ConfigDict", task: "Task | None") -> "Corpus | None":
    """The corpus of a run, for models that count bytes: as it was loaded, or again."""
    from reslab.data.corpus import Corpus, load_corpus

    if config.data.tokenizer != "bytes":
        return None
    if task:
        corpus = getattr(task, "corpus", None)
        return corpus if isinstance(corpus, Corpus) else None
    try:
        return load_corpus(config.data.source, config.data.tokenizer)
    except (ReslabError, OSError):  # A finished run does not need it.
        return None


def _point_on(directory: Any, config: "ConfigDict", again: str) -> None:
    """Writes the run's report, and prints where it is and what could come next."""
    from reslab.study.report import write_report
    from reslab.train.restoring import is_of_language

    print(f"run directory  {directory}")
    with _whole_without("report"):
        print(f"report         {write_report([directory])}")
    run = shlex.quote(str(directory))
    print("next")
    if is_of_language(config):
        is_ids = config.data.tokenizer.partition("(")[0] == "ids"
        prompt = "" if is_ids else " --prompt 'def '"
        print(f"  reslab generate {run}{prompt}")
    print(f"  reslab show {run}")
    if config.train.continue_from:  # Parameters of the same structure.
        change = f"optim.learning_rate={config.optim.learning_rate / 2:g}"
    elif config.model.name == "lm":
        change = "model.residual='hyper(streams=4)'"
    else:
        change = "model.norm=layer"
    print(f"  reslab train {again} --set {change}")
    print("  reslab list")
