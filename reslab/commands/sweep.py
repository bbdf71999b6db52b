"""`reslab sweep`: do the runs of a study, or resume them."""

import argparse
import sys

from reslab.commands.options import compiling, configurable, place, whole
from reslab.runtime.exits import STOPPED

HELP = "do the runs of a study, or resume them"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument(
        "study",
        type=place,
        metavar="STUDY",
        help="a study file, or FILE:SCALE; it is Python and is executed",
    )
    configurable(parser)
    compiling(parser)
    parser.add_argument(
        "--out", type=place, metavar="DIR", help="default: runs/<name of the study>"
    )
    parser.add_argument(
        "--jobs", type=whole(1), default=1, help="runs at once (default: 1)"
    )
    parser.add_argument(
        "--pack",
        choices=["seeds"],
        help="train all seeds of a case as one program, for small models that do not "
        "fill an accelerator; equal to runs alone up to rounding",
    )
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--only", type=whole(0), metavar="INDEX", help="this run alone")
    chosen.add_argument(
        "--shard",
        metavar="I/N",
        help="every N-th run, from run I on: one of N machines",
    )
    parser.add_argument(
        "--retry", action="store_true", help="also repeat runs that diverged"
    )
    parser.add_argument(
        "--manifest", action="store_true", help="list the runs as JSON lines; run none"
    )


def run(options: argparse.Namespace) -> int:
    """Does the runs of a study."""
    from reslab.study.plan import choose, plan
    from reslab.study.sweep import SweepStopped, sweep

    planned = plan(options.study, options.set, options.out)
    if options.manifest:
        print("\n".join(planned.manifest()))
        return 0
    runs = choose(planned, options.only, options.shard)
    try:
        tally = sweep(
            planned,
            runs=runs,
            jobs=options.jobs,
            is_retrying=options.retry,
            is_packing=options.pack == "seeds",
        )
    except SweepStopped:
        print("stopped and saved; the same command resumes it", file=sys.stderr)
        return STOPPED
    for run, message in tally.failed:
        print(f"failed: {run.case}, seed {run.seed}: {message}")
    print(f"{len(tally.done)} of {len(runs)} runs are finished")
    print(f"next\n  reslab report {planned.directory}")
    return 1 if tally.failed else 0
