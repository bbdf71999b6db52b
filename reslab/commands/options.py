"""Types of options on the command line: `argparse` says what was expected."""

import argparse
import math
import os
import pathlib
import re
from collections.abc import Callable

from reslab.core.errors import ReslabError
from reslab.runtime.storage import local_path


def place(text: str) -> str:
    """A path on this machine, or a name; `~` is the home directory, quoted or not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(
            f"expected a name in UTF-8; got {text!r}"
        ) from None
    if not text or not text.isprintable():
        raise argparse.ArgumentTypeError(f"expected a path; got {text!r}")
    if any(len(os.fsencode(part)) > 255 for part in pathlib.PurePath(text).parts):
        raise argparse.ArgumentTypeError(
            f"expected a name of at most 255 bytes; got {text!r}"
        )
    try:
        local = local_path(text, "path")
    except ReslabError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return str(local) if text.startswith("~") else text


def whole(least: int, most: int = 2**63 - 1) -> Callable[[str], int]:
    """A whole number from `least` to `most`."""

    def parse(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(_expected(least, most, 2**62, text))
        return value

    parse.__name__ = "int"  # argparse prints `invalid int value`.
    return parse


def number(least: float, most: float = math.inf) -> Callable[[str], float]:
    """A finite number from `least` to `most`."""

    def parse(text: str) -> float:
        value = float(text)
        if not (least <= value <= most and math.isfinite(value)):
            raise argparse.ArgumentTypeError(_expected(least, most, 1e300, text))
        return value

    parse.__name__ = "float"
    return parse


def _expected(least: float, most: float, large: float, text: str) -> str:
    form = "a finite number, " if isinstance(most, float) and most > large else ""
    end = f" and at most {most}" if most < large else ""
    return f"expected {form}at least {least}{end}; got {text!r}"


def importing(parser: argparse.ArgumentParser) -> None:
    """Adds the option that lets a recorded config name modules."""
    parser.add_argument(
        "--allow-import",
        action="append",
        default=[],
        metavar="MODULE",
        help="let the config of a run name this module, such as lab, or ones below",
    )


def is_change(text: str) -> bool:
    """Returns whether a text is the change of a field of a config.

    >>> is_change("model.depth=8"), is_change("a/b.py"), is_change("--model.depth=8")
    (True, False, False)
    """
    return re.match(r"[a-z]\w*(\.\w+)*\s*=", text) is not None


def configurable(parser: argparse.ArgumentParser) -> None:
    """Adds the options of commands that read a config."""
    importing(parser)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change one field of the config; may be repeated, and --set left out",
    )


def compiling(parser: argparse.ArgumentParser) -> None:
    """Adds the option of commands that compile."""
    parser.add_argument(
        "--no-compile-cache",
        action="store_false",
        dest="compile_cache",
        help="do not keep compiled programs for the next command, nor use kept ones",
    )
