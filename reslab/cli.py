"""The command line: `reslab train | sweep | report | ...`.

Exit codes: 0 done, 1 some runs of a sweep failed, a compiled step does not fit the
chip, or the watchdog ended a run; 2 a mistake in the request (one line, nothing
written), 42 stopped on request with the state saved, 70 an error of reslab, the machine
or its storage, 75 diverged, 130 interrupted.
"""

import argparse
import contextlib
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from reslab import __version__
from reslab.commands.options import is_change
from reslab.core import imports
from reslab.core.errors import ReslabError
from reslab.runtime.exits import BAD_INPUT, INTERNAL, INTERRUPTED, explain
from reslab.runtime.platforms import leave_absent_tpus
from reslab.runtime.programs import kept_programs
from reslab.runtime.streams import outlive_readers, write_failure
from reslab.runtime.text import PrintableStream, warnings_in_one_line

# The files of `reslab/commands`, in the order of --help.
VERBS = ("train", "sweep", "report", "study", "eval", "generate", "inspect")
VERBS += ("search", "benchmark", "import", "export", "transform", "list", "show")
VERBS += ("compile", "bench", "data", "drill", "doctor")


def program() -> int:
    """Runs the command of this process, even if its output is closed early."""
    outlive_readers()
    leave_absent_tpus()
    code = main()
    if code == INTERRUPTED:
        # Threads of JAX that an interrupt left at work may crash Python's shutdown.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    Args:
      arguments: The command line without the program's name; the one of the
        process if None.
    """
    with (
        contextlib.redirect_stdout(PrintableStream(sys.stdout)),
        contextlib.redirect_stderr(PrintableStream(sys.stderr)),
        warnings_in_one_line(),
    ):
        return _run(arguments)


def _run(arguments: Sequence[str] | None) -> int:
    # The heavy imports are inside the commands: --help answers at once.
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    # `model.depth=8` alone says what it means.
    if rest and not (hasattr(options, "set") and all(map(is_change, rest))):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.set += rest
    try:
        _check_working_directory()
        with (
            imports.guarded(getattr(options, "allow_import", ())),
            kept_programs(getattr(options, "compile_cache", None)),
        ):
            code = options.command(options) or 0
        if failure := write_failure():
            raise failure
        return code
    except KeyboardInterrupt:
        print(f"reslab {options.verb}: interrupted", file=sys.stderr)
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
    for verb in VERBS:
        command = importlib.import_module(f"reslab.commands.{verb}")
        added = verbs.add_parser(verb, help=command.HELP, description=command.HELP)
        command.add_arguments(added)
        # The drill runs this program with invalid requests.
        added.set_defaults(command=command.run, program=main)
    return parser


if __name__ == "__main__":
    sys.exit(program())
