"""`reslab benchmark`: every variant on the problems that separate, as one table."""

import argparse
import pathlib
from typing import TYPE_CHECKING

from reslab.commands.options import compiling, configurable, place
from reslab.commands.sweep import selection, sweeping, swept
from reslab.core.errors import ReslabError
from reslab.runtime.exits import STOPPED
from reslab.runtime.files import make_directory, write_whole
from reslab.runtime.storage import local_path, storage_errors

if TYPE_CHECKING:
    from reslab.study.selection import Selection

HELP = "judge variants by the depth benchmark"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    configurable(parser)
    compiling(parser)
    parser.add_argument(
        "--tasks", nargs="+", default=[], metavar="TASK", help="default: all"
    )
    sweeping(parser)
    parser.add_argument(
        "--out",
        type=place,
        default="runs/benchmark",
        metavar="DIR",
        help="a folder of runs a task (default: runs/benchmark)",
    )
    parser.add_argument(
        "--into",
        type=place,
        metavar="DIR",
        help="where the leaderboard is written (default: --out)",
    )
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument(
        "--list", action="store_true", help="list the tasks and cases; run none"
    )
    chosen.add_argument(
        "--table",
        action="store_true",
        help="write the leaderboard of the runs that there are; run none",
    )


def run(options: argparse.Namespace) -> int:
    """Does the runs that are asked for, and writes the leaderboard."""
    from reslab.study.benchmark.tasks import TASKS, task

    tasks = [task(name) for name in options.tasks or TASKS]
    asked = selection(options)
    if options.list:
        return _list([one.name for one in tasks])
    out, code = local_path(options.out, "--out"), 0
    if not options.table:
        for one in tasks:
            names = _with_known(one.name, asked.names)
            chosen = type(asked)(names, asked.more)
            source = f"benchmark:{one.name}"
            print(f"{one.name}: {one.question}")
            asked_of = source, options.set, str(out / one.name), chosen
            ended, _ = swept(asked_of, options)
            if ended == STOPPED:
                return ended
            code = max(code, ended)
    folder = local_path(options.into or options.out, "--into")
    _write(folder, out, asked, options.set)
    return code


def _with_known(name: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """The cases of a task that are asked for, and those of its known answers."""
    from reslab.core.errors import nearest
    from reslab.study.benchmark import get_study

    known = [one.name for one in get_study(name).cases]
    wanted = []
    for asked in names:
        found = [one for one in known if one == asked or one.startswith(f"{asked}=")]
        if not found:
            raise ReslabError(
                f"--cases: no case {asked!r} of the benchmark",
                hint=nearest(asked, known) or "reslab benchmark --list",
            )
        wanted += found
    if wanted:
        wanted += [one for one in known if one.startswith("known: ")]
    return tuple(dict.fromkeys(wanted))


def _list(tasks: list[str]) -> int:
    from reslab.study.benchmark import get_study
    from reslab.study.benchmark.tasks import task

    for name in tasks:
        one = task(name)
        print(f"{name}\n  {one.question}")
        for answer in one.answers:
            print(f"  must come out: {answer.case.name}: {answer.expected}")
    print("cases")
    for one in get_study(tasks[0]).cases:
        fields = ", ".join(f"{key}={value}" for key, value in one.fields.items())
        print(f"  {one.name}  {fields}".rstrip())
    return 0


def _write(
    folder: pathlib.Path, out: pathlib.Path, asked: "Selection", changes: list[str]
) -> None:
    """Writes the leaderboard as a page, as CSV and as a picture."""
    from reslab.study.benchmark import leaderboard, picture
    from reslab.study.benchmark.tasks import TASKS
    from reslab.study.spreadsheets import as_csv

    columns = [
        leaderboard.read_column(name, out / name, asked, changes)
        for name in TASKS
        if (out / name).is_dir()
    ]
    if not columns:
        raise ReslabError(
            f"{out}", expected="runs of the benchmark", got="none", hint="run it first"
        )
    page = leaderboard.markdown(columns)
    with storage_errors(f"{folder}", expected="a directory that can be written"):
        make_directory(folder)
        write_whole(folder / "leaderboard.md", page)
        write_whole(folder / "leaderboard.csv", as_csv(leaderboard.of_cells(columns)))
        write_whole(folder / "leaderboard.svg", picture.draw(columns))
    print(page)
    print(f"leaderboard  {folder / 'leaderboard.md'}")
