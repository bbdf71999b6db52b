"""`reslab sweep`: do the runs of a study, or resume them."""

import argparse
import pathlib
import sys
from typing import TYPE_CHECKING, Any

from reslab.commands.options import compiling, configurable, place, whole
from reslab.core.errors import ReslabError
from reslab.runtime.exits import STOPPED

if TYPE_CHECKING:
    from reslab.study.selection import Selection

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
    alone = sweeping(parser)
    alone.add_argument("--only", type=whole(0), metavar="INDEX", help="this run alone")
    parser.add_argument(
        "--manifest", action="store_true", help="list the runs as JSON lines; run none"
    )


def sweeping(parser: argparse.ArgumentParser) -> Any:
    """Adds the options of commands that do the runs of studies.

    Returns:
      The group of those that choose some of the runs.
    """
    parser.add_argument(
        "--cases",
        nargs="+",
        default=[],
        metavar="NAME",
        help="these cases of the study alone, and their baselines",
    )
    parser.add_argument(
        "--case",
        nargs="+",
        action="append",
        default=[],
        metavar=("NAME", "FIELD=VALUE"),
        help="add a case of this name with these fields; may be repeated",
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
    parser.add_argument(
        "--retry", action="store_true", help="also repeat runs that diverged"
    )
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument(
        "--shard",
        metavar="I/N",
        help="every N-th run, from run I on: one of N machines",
    )
    return chosen


def selection(options: argparse.Namespace) -> "Selection":
    """The cases that are asked for.

    Raises:
      ReslabError: If a case that is added has no fields.
    """
    from reslab.core.config import parse_override
    from reslab.study.algebra import Case
    from reslab.study.selection import Selection

    added = []
    for name, *fields in options.case:
        if not fields:
            raise ReslabError(f"--case {name}", expected="NAME FIELD=VALUE", got=name)
        added.append(Case(name, dict(map(parse_override, fields))))
    return Selection(tuple(options.cases), tuple(added))


def run(options: argparse.Namespace) -> int:
    """Does the runs of a study."""
    from reslab.study.stages import staged

    asked = options.study, options.set, options.out, selection(options)
    if options.manifest:
        print("\n".join(staged(*asked).manifest()))
        return 0
    code, directory = swept(asked, options, only=options.only)
    if code != STOPPED:
        print(f"next\n  reslab report {directory}")
    return code


def swept(
    asked: tuple[Any, ...], options: argparse.Namespace, only: int | None = None
) -> tuple[int, pathlib.Path]:
    """Does the runs of a study, stage after stage, and says what became of them.

    Args:
      asked: What `reslab.study.stages.staged` takes.
      options: Those of `sweeping`.
      only: Index of a run to do alone.

    Returns:
      The exit code, and the directory of the study.
    """
    from reslab.study.plan import choose
    from reslab.study.stages import staged
    from reslab.study.sweep import SweepStopped, sweep

    planned, is_continued = staged(*asked), False
    try:
        while True:
            runs = choose(planned, only, options.shard)
            tally = sweep(
                planned,
                runs=runs,
                jobs=options.jobs,
                is_retrying=options.retry and not is_continued,
                is_packing=options.pack == "seeds",
            )
            following = staged(*asked)
            if len(following.runs) == len(planned.runs) or only is not None:
                break
            # Runs that have ended ask for more.
            planned, is_continued = following, True
    except SweepStopped:
        print("stopped and saved; the same command resumes it", file=sys.stderr)
        return STOPPED, planned.directory
    for run, message in tally.failed:
        print(f"failed: {run.case}, seed {run.seed}: {message}")
    print(f"{len(tally.done)} of {len(runs)} runs are finished")
    if all(run.factor is not None for run in planned.runs):
        print("the seeds that judge follow once every run of the search has ended")
    return (1 if tally.failed else 0), planned.directory
