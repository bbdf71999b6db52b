"""`reslab compile`: cost of a step on an absent TPU."""

import argparse
import pathlib
import sys
from typing import TYPE_CHECKING

from reslab.commands.options import compiling, configurable, place
from reslab.commands.runs import configure
from reslab.core import imports
from reslab.core.errors import ReslabError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

HELP = "cost of a step on an absent TPU"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument(
        "configs",
        nargs="+",
        type=place,
        metavar="CONFIG",
        help="a config, or a run directory",
    )
    parser.add_argument(
        "--topology",
        default="v5e:2x4",
        metavar="SLICE",
        help="v4, v5e, v5p or v6e and its shape in chips (default: v5e:2x4)",
    )
    parser.add_argument(
        "--what",
        default="train",
        choices=("train", "eval", "generate"),
        help="the step: of training (default), evaluation, or all of a generation",
    )
    parser.add_argument(
        "--fit",
        action="store_true",
        help="where it does not fit, compile its remedies too, until one does",
    )
    configurable(parser)
    compiling(parser)
    parser.add_argument(
        "--versus",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="compile again with this change, for one more column; may be repeated",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")


def run(options: argparse.Namespace) -> int:
    """Compiles steps and prints their costs."""
    from reslab.commands.costs import as_json, table
    from reslab.core import config as configs
    from reslab.train.compiled import compile_configs

    named: dict[str, ConfigDict] = {}
    for source in options.configs:
        is_run = (pathlib.Path(source) / "config.json").is_file()
        for change in (None, *options.versus):
            config = configure(options, source, is_run=is_run)
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
