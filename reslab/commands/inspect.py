"""`reslab inspect`: look inside a run, layer by layer."""

import argparse
import pathlib

from reslab.commands.options import compiling, importing, place, whole
from reslab.commands.runs import open_run
from reslab.core import imports

HELP = "look inside a run, layer by layer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    importing(parser)
    compiling(parser)
    parser.add_argument(
        "run",
        type=place,
        metavar="RUN|STUDY",
        help="a run, or the directory of a study",
    )
    parser.add_argument(
        "--probe",
        action="append",
        metavar="SPEC",
        help="a probe (`reslab list probes`); may be repeated (default: all)",
    )
    parser.add_argument(
        "--step", type=whole(0), help="one step (default: all that are kept)"
    )


def run(options: argparse.Namespace) -> int:
    """Measures probes of a run and prints them."""
    from reslab.core import registry
    from reslab.runtime.inside import check_links
    from reslab.study.plan import finished_runs
    from reslab.train import api
    from reslab.train.probe import table

    imports.allow(*registry.outside("probes", options.probe or ()))
    check_links(options.run)
    runs = finished_runs(options.run)
    for run in runs or [pathlib.Path(options.run)]:
        options.run = str(run)
        open_run(options)
        records = api.inspect(run, options.probe, step=options.step)
        if not runs:
            print(table(records[-1]))
            print()
        print(f"all steps and matrices  {run}/inspect.jsonl")
    return 0
