"""`reslab eval`: evaluate a run on all of its held-out text."""

import argparse
import math
import re
from typing import Any

from reslab.commands.options import compiling, importing, place
from reslab.commands.runs import open_run
from reslab.core import imports, registry
from reslab.core.errors import ReslabError

HELP = "evaluate a run on all of its held-out text, or on other text"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    importing(parser)
    compiling(parser)
    parser.add_argument("run", type=place, metavar="RUN", help="a run directory")
    parser.add_argument(
        "--text",
        metavar="PATH",
        help="evaluate on this text instead: a file, directory or glob, or a source "
        "such as \"parquet(path='held.parquet')\"",
    )
    parser.add_argument(
        "--stack",
        metavar="SPEC",
        help="another stack of the same layers, such as 'path(layers=(0, 2, 1))'",
    )


def run(options: argparse.Namespace) -> int:
    """Evaluates a run and prints its metrics."""
    config = open_run(options)

    import jax

    from reslab.core.model_state import check_updated
    from reslab.train.evaluate import Evaluator
    from reslab.train.restoring import restore, with_stack

    devices = jax.devices()
    # All devices where they share the batch evenly, otherwise one.
    devices = devices if config.eval.batch % len(devices) == 0 else devices[:1]
    record = _tokenizer_of(config) if options.text else None
    setup, variables = restore(options.run, config, devices, record)
    check_updated(variables)
    if options.text:
        task: Any = setup.task  # `_tokenizer_of` checked that it is Language.
        task.hold_out(_source(options.text))
    if options.stack:
        # Given on the command line.
        imports.allow(*registry.outside("stacks", options.stack))
        setup = with_stack(setup, options.stack)
    evaluator = Evaluator(setup)
    found = evaluator(variables)
    for name, value in found.items():
        if not math.isfinite(value):
            raise ReslabError(
                f"{options.run}: {name}", expected="a finite value", got=str(value)
            )
    if options.stack:
        print(f"stack {options.stack}")
    if options.text:
        print(f"text {options.text}")
    for name, value in found.items():
        print(f"{name} {value:.6g}")
    return 0


def _tokenizer_of(config: Any) -> dict[str, Any]:
    """The tokenizer's digest alone: the corpus of the run need not be here."""
    from reslab.data.encoding import tokenizer_sha256
    from reslab.train.restoring import check_language
    from reslab.train.tasks.language import Language

    check_language(config, "--text")
    task = Language(config)
    digest = tokenizer_sha256(task.tokenizer, config.data.tokenizer)
    return {"tokenizer_sha256": digest}


def _source(text: str) -> str:
    """The spec of a source, from a spec or a path."""
    if re.fullmatch(r"[\w.]+\(.*\)", text, re.DOTALL):
        imports.allow(*registry.outside("sources", text))
        return text
    return f"text(path={text!r})"
