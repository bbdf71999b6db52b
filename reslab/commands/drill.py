"""`reslab drill`: plant faults in small runs and count what survives."""

import argparse
import sys

from reslab.commands.options import whole

HELP = "plant faults in small runs and count what survives"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument(
        "--only", action="append", default=[], metavar="ROW", help="may be repeated"
    )
    parser.add_argument(
        "--nightly", action="store_true", help="many more faults; hours"
    )
    parser.add_argument(
        "--seed", type=whole(0), default=0, help="chooses where they are"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, not lines")


def run(options: argparse.Namespace) -> int:
    """Plants faults and prints what was survived."""
    from reslab.drill import as_json, drill
    from reslab.runtime.files import scratch_directory

    def tell(line: str) -> None:
        print(line, file=sys.stderr if options.json else sys.stdout, flush=True)

    with scratch_directory("reslab.drill-") as directory:
        outcomes = drill(
            directory / "runs",
            options.only,
            program=options.program,
            is_nightly=options.nightly,
            seed=options.seed,
            tell=tell,
        )
    if options.json:
        print(as_json(outcomes))
    return 1 if any(outcome.broken for outcome in outcomes) else 0
